package bgp

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Annotations of Nodes.
const (
	// AnnotationASN is the node's AS number, instead of the configuration's.
	AnnotationASN = "bgp.vk-metal.io/asn"
	// AnnotationRouterID is the node's BGP identifier, in the form of an IPv4 address.
	AnnotationRouterID = "bgp.vk-metal.io/router-id"
	// AnnotationWithdraw takes back what the node tells: WithdrawServices or WithdrawAll.
	AnnotationWithdraw = "bgp.vk-metal.io/withdraw"
)

// AnnotationPrefix is what all of them begin with.
const AnnotationPrefix = "bgp.vk-metal.io/"

// Values of AnnotationWithdraw.
const (
	WithdrawServices = "services"
	WithdrawAll      = "all"
)

// labelExclude is the well-known label of nodes that load balancers must not use.
const labelExclude = "node.kubernetes.io/exclude-from-external-load-balancers"

// Node is what of a Node decides about BGP.
type Node struct {
	Name                string
	Addrs               []netip.Addr // InternalIPs
	PodCIDRs            []netip.Prefix
	Labels, Annotations map[string]string
}

// addr is the node's first address of an IP version; invalid if it has none.
func (n *Node) addr(is4 bool) netip.Addr {
	for _, a := range n.Addrs {
		if a.Is4() == is4 {
			return a
		}
	}
	return netip.Addr{}
}

// Service is what of a Service and its endpoints decides about its addresses.
type Service struct {
	Name                                     string // namespace/name
	Labels                                   map[string]string
	ClusterIPs, ExternalIPs, LoadBalancerIPs []netip.Addr
	// LocalInternal and LocalExternal are the traffic policies.
	LocalInternal, LocalExternal bool
	// Ready: there is a ready endpoint; Here: one is on this node.
	Ready, Here bool
}

// Peer is one wanted session.
type Peer struct {
	Name                             string // the configuration's; for nodes with their name behind a slash
	Address, Source                  netip.Addr
	Port                             int
	ASN                              uint32
	Passive, TTLSecurity             bool
	Multihop                         int
	PasswordFile                     string
	HoldTime, KeepAlive, ConnectTime time.Duration
	IPv4, IPv6                       bool
	MaxPrefixes                      int
	ReflectorClient                  bool
	ClusterID                        netip.Addr
	Communities                      string // joined by blanks, so that peers can be compared
	LocalPref                        uint32
}

// String shows the peer for people and tests.
func (p Peer) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s AS%d", p.Name, netip.AddrPortFrom(p.Address, uint16(p.Port)), p.ASN)
	if p.Source.IsValid() {
		fmt.Fprintf(&b, " from %s", p.Source)
	}
	for _, f := range []struct {
		on   bool
		text string
	}{
		{p.IPv4, "IPv4"},
		{p.IPv6, "IPv6"},
		{p.Passive, "passive"},
		{p.TTLSecurity, "ttl-security"},
		{p.Multihop > 0, fmt.Sprintf("multihop %d", p.Multihop)},
		{p.PasswordFile != "", "password " + p.PasswordFile},
		{p.ReflectorClient, "reflector-client"},
		{p.Communities != "", "communities " + p.Communities},
		{p.LocalPref > 0, fmt.Sprintf("local-pref %d", p.LocalPref)},
	} {
		if f.on {
			b.WriteString(" " + f.text)
		}
	}
	return b.String()
}

// Route is one prefix that the node tells.
type Route struct {
	Prefix netip.Prefix
	// NextHop is invalid for the session's own address.
	NextHop netip.Addr
	// Why names what wants it, sorted: the route goes when the last has gone.
	Why []string
}

// State is what a node's BGP should be.
type State struct {
	ASN         uint32
	RouterID    netip.Addr
	ListenPort  int
	RestartTime time.Duration
	Communities []string
	LocalPref   uint32
	Peers       []Peer  // by address
	Routes      []Route // by prefix
	Filter      Filter
	// Problems are what of the input could not be used; the rest is.
	Problems []Problem
}

// Problem is a mistake in a Node or the configuration.
type Problem struct {
	// Node is whose annotation it is; empty for the configuration.
	Node, Text string
}

// String implements fmt.Stringer.
func (p Problem) String() string {
	if p.Node == "" {
		return p.Text
	}
	return "node " + p.Node + ": " + p.Text
}

// String prints the whole state, a line for each peer and route.
func (s *State) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "AS%d router-id %s listen %d restart %s\n", s.ASN, s.RouterID, s.ListenPort, s.RestartTime)
	for _, p := range s.Peers {
		fmt.Fprintf(&b, "peer %s\n", p)
	}
	for _, r := range s.Routes {
		fmt.Fprintf(&b, "route %s", r.Prefix)
		if r.NextHop.IsValid() {
			fmt.Fprintf(&b, " via %s", r.NextHop)
		}
		fmt.Fprintf(&b, " for %s\n", strings.Join(r.Why, ", "))
	}
	for _, p := range s.Problems {
		fmt.Fprintf(&b, "problem %s\n", p)
	}
	return b.String()
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits())
}

func sortedKeys[V any](m map[netip.Prefix]V) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(m))
	for p := range m {
		out = append(out, p)
	}
	slices.SortFunc(out, comparePrefix)
	return out
}
