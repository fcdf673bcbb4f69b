package hostgw

import "net/netip"

// Peer is another node: where it is and which podCIDRs lie behind it.
type Peer struct {
	Name     string
	Addrs    []netip.Addr // InternalIPs, IPv4 and IPv6
	PodCIDRs []netip.Prefix
	Keys     string // what the node announces for Tunnels; empty is nothing
}
