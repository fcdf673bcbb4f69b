// Package hostgw keeps the kernel's routes to the other nodes' podCIDRs in step with
// the Nodes: wanted → kernel → diff → apply, woken by Node and netlink events. It
// touches only routes that carry its own protocol number.
package hostgw
