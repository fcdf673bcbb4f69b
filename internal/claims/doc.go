// Package claims has the devices of ResourceClaims (dynamic resource allocation, KEP-4381) made
// ready for pods by the plugins of their drivers, and taken back, as a kubelet does
// (pkg/kubelet/cm/dra, v1.35). What was asked of plugins is kept in a file. It must not know how
// devices get into a container: it names them in the terms of the Container Device Interface.
package claims
