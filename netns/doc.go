// Package netns owns pod network namespaces: one per pod, a point-to-point veth, the
// addresses of the node's podCIDRs, anti-spoofing, masquerade and host ports. It knows
// the kernel by netlink and nftables; it must not know systemd, pods' meaning or the
// API server.
package netns
