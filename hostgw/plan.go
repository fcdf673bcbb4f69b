package hostgw

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// route is one wanted or existing route, the fields that we own and nothing else.
type route struct {
	dst         netip.Prefix
	gw          netip.Addr // invalid for unreachable routes
	link        int        // index; 0 for unreachable routes
	unreachable bool
	blocked     bool       // unreachable in the place of a route to a node, not behind all others
	outer       netip.Addr // of encapsulated routes: where VXLAN sends it
}

// same compares the fields that the kernel tells; the gateway stands for outer.
func (r route) same(o route) bool {
	return r.dst == o.dst && r.gw == o.gw && r.link == o.link && r.unreachable == o.unreachable && r.blocked == o.blocked
}

// last says whether the route has the metric behind all others: it replaces none with
// another one.
func (r route) last() bool { return r.unreachable && !r.blocked }

func (r route) String() string {
	if r.unreachable {
		return fmt.Sprintf("unreachable %s", r.dst)
	}
	if r.outer.IsValid() {
		return fmt.Sprintf("%s by VXLAN to %s", r.dst, r.outer)
	}
	if !r.gw.IsValid() {
		return fmt.Sprintf("%s link %d", r.dst, r.link)
	}
	return fmt.Sprintf("%s via %s link %d", r.dst, r.gw, r.link)
}

// hop is the answer of the kernel's route lookup for a node's address.
type hop struct {
	link   int
	onLink bool // no gateway between
	local  bool // the address is this host's
}

// inputs of a plan.
type inputs struct {
	peers   []Peer
	self    []netip.Prefix // this node's podCIDRs
	subnets []netip.Prefix // the host's own, connected ones
	encap   Encapsulation
	lookup  func(netip.Addr) (hop, error)
	tunnels TunnelPlan
}

// Errors of a peer, found in PeerStatus.Err.
var (
	// ErrOtherSubnet: the node is behind a router, and encapsulation is off.
	ErrOtherSubnet = errors.New("node is in another subnet")
	// ErrRefused: a podCIDR that would break this host or another node.
	ErrRefused = errors.New("podCIDR refused")
	// ErrConflict: another program has a route to the podCIDR.
	ErrConflict = errors.New("route of another program in the way")
)

// plan is what should be in the kernel, and why some of it is not.
type plan struct {
	routes map[netip.Prefix]route
	owner  map[netip.Prefix]string // the peer's name
	errs   map[string][]error      // by peer
	// underlay are the links that encapsulated packets leave by, with the bytes that
	// VXLAN takes there; empty when there is no encapsulated route.
	underlay map[int]int

	in    inputs       // peers sorted by name
	taken *prefixSet   // podCIDRs that have a route, and what is the host's own
	nodes []netip.Addr // of all peers, sorted
}

// makePlan decides; it has no effects but lookups.
func makePlan(in inputs) *plan {
	p := &plan{routes: map[netip.Prefix]route{}, owner: map[netip.Prefix]string{}, errs: map[string][]error{}, underlay: map[int]int{}}
	for _, cidr := range in.self {
		if err := checkCIDR(cidr); err == nil {
			p.routes[cidr] = route{dst: cidr, unreachable: true}
		}
	}
	p.taken = newPrefixSet(slices.Concat(in.self, in.subnets))
	in.peers = byName(in.peers)
	p.in = in
	for _, peer := range in.peers {
		p.nodes = append(p.nodes, peer.Addrs...)
	}
	slices.SortFunc(p.nodes, netip.Addr.Compare)
	for _, peer := range in.peers {
		for _, cidr := range peer.PodCIDRs {
			if err := p.take(peer, cidr); err != nil {
				p.errs[peer.Name] = append(p.errs[peer.Name], err)
			}
		}
	}
	p.fence(in.tunnels.Fences)
	return p
}

// accepted are the peers with those of their podCIDRs that break nothing.
func accepted(in inputs) []Peer {
	in.tunnels = TunnelPlan{Ways: map[string]Way{}}
	for _, peer := range in.peers {
		in.tunnels.Ways[peer.Name] = Way{Link: 1} // reachable
	}
	p := makePlan(in)
	peers := slices.Clone(in.peers)
	for i := range peers {
		peers[i].PodCIDRs = slices.DeleteFunc(slices.Clone(peers[i].PodCIDRs), func(c netip.Prefix) bool { return p.owner[c] != peers[i].Name })
	}
	return peers
}

func byName(peers []Peer) []Peer {
	compare := func(a, b Peer) int { return strings.Compare(a.Name, b.Name) }
	if slices.IsSortedFunc(peers, compare) {
		return peers
	}
	peers = slices.Clone(peers)
	slices.SortStableFunc(peers, compare)
	return peers
}

// take plans the route to one podCIDR.
func (p *plan) take(peer Peer, cidr netip.Prefix) error {
	if err := p.allowed(cidr); err != nil {
		return err
	}
	r, err := p.routeTo(peer, cidr)
	if err != nil {
		return err
	}
	p.routes[cidr], p.owner[cidr] = r, peer.Name
	p.taken.add(cidr)
	return nil
}

// routeTo is the route to a peer's podCIDR: by its tunnel, or as its addresses are reached. A
// podCIDR that must not be reached otherwise has a route that says so, and an error.
func (p *plan) routeTo(peer Peer, cidr netip.Prefix) (route, error) {
	way := p.in.tunnels.Ways[peer.Name]
	switch failed := way.Err; {
	case failed != nil:
		p.errs[peer.Name] = append(p.errs[peer.Name], fmt.Errorf("encrypt for %s: %w", cidr, failed))
		return route{dst: cidr, unreachable: true, blocked: true}, nil
	case way.Link != 0:
		return route{dst: cidr, link: way.Link}, nil
	}
	return p.nextHop(peer, cidr)
}

// fence makes ranges unreachable as a whole; what is known inside of them has longer prefixes.
func (p *plan) fence(ranges []netip.Prefix) {
	for _, r := range ranges {
		if _, taken := p.routes[r]; !taken {
			p.routes[r] = route{dst: r, unreachable: true, blocked: true}
		}
	}
}

// dropEncapsulated leaves out the routes that the overlay would carry: it cannot.
func (p *plan) dropEncapsulated(why error) {
	for dst, r := range p.routes {
		if r.outer.IsValid() {
			p.errs[p.owner[dst]] = append(p.errs[p.owner[dst]], fmt.Errorf("encapsulate for %s: %w", dst, why))
			delete(p.routes, dst)
		}
	}
}

// allowed refuses a podCIDR that would break this host or another node.
func (p *plan) allowed(cidr netip.Prefix) error {
	if err := checkCIDR(cidr); err != nil {
		return err
	}
	if other, ok := p.taken.overlap(cidr); ok {
		whose := "a subnet or podCIDR of this host"
		if o := p.owner[other]; o != "" {
			whose = "a podCIDR of node " + o
		}
		return fmt.Errorf("%w: %s overlaps %s, %s", ErrRefused, cidr, other, whose)
	}
	if i, _ := slices.BinarySearchFunc(p.nodes, cidr.Addr(), netip.Addr.Compare); i < len(p.nodes) && cidr.Contains(p.nodes[i]) {
		return fmt.Errorf("%w: %s holds the node address %s", ErrRefused, cidr, p.nodes[i])
	}
	return nil
}

// nextHop takes the first of the peer's addresses that can carry the podCIDR: of the
// same IP version first, then by encapsulation also IPv6 over IPv4.
func (p *plan) nextHop(peer Peer, cidr netip.Prefix) (route, error) {
	var first error
	for _, same := range []bool{true, false} {
		for _, a := range peer.Addrs {
			if (a.Is4() == cidr.Addr().Is4()) != same {
				continue
			}
			r, err := p.routeBy(a, cidr)
			if err == nil {
				return r, nil
			}
			if first == nil {
				first = err
			}
		}
	}
	if first == nil {
		first = fmt.Errorf("no address of node %s is of the IP version of %s", peer.Name, cidr)
	}
	return route{}, first
}

// routeBy is the route by one node address.
func (p *plan) routeBy(a netip.Addr, cidr netip.Prefix) (route, error) {
	gw, ok := innerGateway(cidr, a)
	encap := p.in.encap == EncapAlways || p.in.encap == EncapCrossSubnet
	sameVersion := a.Is4() == cidr.Addr().Is4()
	if !sameVersion && (!encap || !ok) {
		return route{}, fmt.Errorf("node address %s is not of the IP version of %s", a, cidr)
	}
	h, err := p.in.lookup(a)
	switch {
	case err != nil:
		return route{}, fmt.Errorf("look up route to node address %s: %w", a, err)
	case h.local:
		return route{}, fmt.Errorf("%w: node address %s is this host's own", ErrRefused, a)
	case h.onLink && sameVersion && p.in.encap != EncapAlways:
		return route{dst: cidr, gw: a, link: h.link}, nil
	case !encap:
		return route{}, fmt.Errorf("%w: %s is reached through a router", ErrOtherSubnet, a)
	}
	over := overhead4
	if a.Is6() {
		over = overhead6
	}
	p.underlay[h.link] = max(p.underlay[h.link], over)
	return route{dst: cidr, gw: gw, outer: a}, nil // the link is known when the device is there
}

// checkCIDR refuses what can be no podCIDR.
func checkCIDR(p netip.Prefix) error {
	a := p.Addr()
	switch {
	case !p.IsValid(), p.Masked() != p, a.Is4In6():
		return fmt.Errorf("%w: %s is not a network prefix", ErrRefused, p)
	case p.Bits() < 8, a.IsMulticast(), a.IsLoopback(), a.IsUnspecified(), a.IsLinkLocalUnicast(), a.Is4() && a.As4()[0] >= 224, a.Is4() && (a.As4()[0] == 127 || a.As4()[0] == 0):
		return fmt.Errorf("%w: %s is not a range of unicast addresses", ErrRefused, p)
	}
	return nil
}

// prefixSet holds prefixes of which none overlaps another, sorted by address.
type prefixSet struct{ sorted []netip.Prefix }

func newPrefixSet(prefixes []netip.Prefix) *prefixSet {
	s := &prefixSet{}
	prefixes = slices.Clone(prefixes)
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() }) // wide ones first
	for _, p := range prefixes {
		if _, ok := s.overlap(p.Masked()); p.IsValid() && !ok {
			s.add(p.Masked())
		}
	}
	return s
}

func (s *prefixSet) search(p netip.Prefix) int {
	i, _ := slices.BinarySearchFunc(s.sorted, p, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return i
}

// add takes a prefix that overlaps none of the set.
func (s *prefixSet) add(p netip.Prefix) { s.sorted = slices.Insert(s.sorted, s.search(p), p) }

// drop takes a member away.
func (s *prefixSet) drop(p netip.Prefix) {
	if i := s.search(p); i < len(s.sorted) && s.sorted[i] == p {
		s.sorted = slices.Delete(s.sorted, i, i+1)
	}
}

// overlap finds a member that overlaps p: only its neighbours in the order can.
func (s *prefixSet) overlap(p netip.Prefix) (netip.Prefix, bool) {
	i := s.search(p)
	for _, j := range []int{i, i - 1} {
		if j >= 0 && j < len(s.sorted) && s.sorted[j].Overlaps(p) {
			return s.sorted[j], true
		}
	}
	return netip.Prefix{}, false
}
