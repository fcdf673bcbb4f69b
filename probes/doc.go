// Package probes runs liveness, readiness and startup probes from the node, with the
// kubelet's timing and semantics. It knows addresses and an Execer; it must not know
// systemd, the network's construction or the API server.
package probes
