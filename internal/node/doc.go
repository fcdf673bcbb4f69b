// Package node keeps this server's Node object true: capacity, addresses, conditions and
// lease, through virtual-kubelet's node controller, and tells others of its podCIDRs and of
// the other Nodes. It must not know pods, units or routes.
package node
