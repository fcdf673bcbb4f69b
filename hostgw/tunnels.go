package hostgw

import (
	"net/netip"
	"time"
)

// Tunnels encrypt what goes to other nodes' pods. The Router asks them before it plans routes;
// Sync is called from one goroutine, the rest from any.
type Tunnels interface {
	// Wanted says whether there shall be any; without, Sync only takes away what there was.
	Wanted() bool
	// Sync makes the tunnels and says by which way each peer is reached. The error says what
	// could not be done; the plan holds all the same.
	Sync(TunnelInputs) (TunnelPlan, error)
	// UsesLink says whether a link is one of theirs, so that its events matter.
	UsesLink(index int) bool
	// Touched says whether an event of an nftables table, sent by a netlink port, shows that
	// somebody else changed a table of theirs.
	Touched(table string, portID uint32) bool
	// Close releases sockets; the tunnels stay.
	Close()
}

// TunnelInputs are what a Router knows.
type TunnelInputs struct {
	// Peers with those podCIDRs that they may have; with all if tunnels are not wanted.
	Peers []Peer
	// Self are this node's podCIDRs, Subnets the host's connected ones.
	Self, Subnets []netip.Prefix
	// Full compares with the kernel instead of trusting memory.
	Full bool
	// Lookup says by which link an address is reached, and whether it is this host's own.
	Lookup func(netip.Addr) (link int, local bool, err error)
}

// TunnelPlan is what routes are made of.
type TunnelPlan struct {
	Ways map[string]Way // by the peer's name
	// Fences are ranges of which nothing is reached but what has a route.
	Fences []netip.Prefix
	// Again is when Sync wants to be called without an event; 0 is never.
	Again time.Duration
}

// Way is how a peer's pods are reached; the zero Way is as without tunnels.
type Way struct {
	Link int   // of a tunnel
	Err  error // why they must not be reached at all
}

// encrypts says whether routes depend on tunnels.
func (r *Router) encrypts() bool { return r.tunnels != nil && r.tunnels.Wanted() }

// prepareTunnels has the tunnels made and takes their ways for the plan.
func (r *Router) prepareTunnels(in *inputs, full bool) (err error) {
	if r.tunnels == nil {
		return nil
	}
	peers := in.peers
	if r.encrypts() {
		peers = accepted(*in)
	}
	in.tunnels, err = r.tunnels.Sync(TunnelInputs{
		Peers: peers, Self: in.self, Subnets: in.subnets, Full: full,
		Lookup: func(a netip.Addr) (int, bool, error) {
			h, err := r.lookup(a)
			return h.link, h.local, err
		},
	})
	r.soon = in.tunnels.Again
	return err
}
