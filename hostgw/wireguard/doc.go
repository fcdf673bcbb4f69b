// Package wireguard encrypts what goes to other nodes' pods: two WireGuard devices, their keys
// and peers, and what keeps pods' packets out of everything else. Devices and keys are the
// kernel's; who the peers are comes from the Router, which makes the routes.
package wireguard
