package bgp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vk-metal/vk-metal/hostgw"
)

// ErrRefused is why a received route is not installed.
var ErrRefused = errors.New("route refused")

// Filter says which received routes may reach the kernel: those inside other nodes'
// podCIDRs and declared ranges, and never what is this node's own.
type Filter struct {
	cidrs  map[netip.Prefix]bool // other nodes' podCIDRs
	bits   []int                 // lengths among them
	ranges []netip.Prefix        // declared
	own    []netip.Prefix        // podCIDRs and addresses of this node
	nodes  []netip.Addr          // other nodes' addresses, sorted
	sealed []netip.Prefix        // what only tunnels may lead to
}

func newFilter(in Inputs) Filter {
	f := Filter{cidrs: map[netip.Prefix]bool{}, ranges: in.Config.Import.Prefixes, own: slices.Clone(in.Self.PodCIDRs), sealed: in.Encrypted}
	for _, a := range in.Self.Addrs {
		f.own = append(f.own, netip.PrefixFrom(a, a.BitLen()))
	}
	for _, n := range in.Others {
		for _, c := range n.PodCIDRs {
			f.cidrs[c] = true
			if !slices.Contains(f.bits, c.Bits()) {
				f.bits = append(f.bits, c.Bits())
			}
		}
		f.nodes = append(f.nodes, n.Addrs...)
	}
	slices.SortFunc(f.nodes, netip.Addr.Compare)
	return f
}

// Check is nil for a route that may be installed on a host with these connected subnets.
func (f *Filter) Check(p netip.Prefix, subnets []netip.Prefix) error {
	if err := hostgw.CheckCIDR(p); err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if !f.declared(p) {
		return fmt.Errorf("%w: %s is in no node's podCIDR and in no range of import.prefixes", ErrRefused, p)
	}
	for _, own := range f.own {
		if own.Overlaps(p) {
			return fmt.Errorf("%w: %s overlaps %s of this node", ErrRefused, p, own)
		}
	}
	for _, s := range f.sealed {
		if s.Bits() <= p.Bits() && s.Contains(p.Addr()) {
			return fmt.Errorf("%w: %s lies in %s, to which traffic is encrypted", ErrRefused, p, s)
		}
	}
	for _, s := range subnets {
		if s.Overlaps(p) {
			return fmt.Errorf("%w: %s overlaps the subnet %s of this host", ErrRefused, p, s)
		}
	}
	if i, _ := slices.BinarySearchFunc(f.nodes, p.Addr(), netip.Addr.Compare); i < len(f.nodes) && p.Contains(f.nodes[i]) {
		return fmt.Errorf("%w: %s holds the node address %s", ErrRefused, p, f.nodes[i])
	}
	return nil
}

func (f *Filter) declared(p netip.Prefix) bool {
	for _, bits := range f.bits {
		if bits > p.Bits() || bits > p.Addr().BitLen() {
			continue
		}
		if wide, err := p.Addr().Prefix(bits); err == nil && f.cidrs[wide] {
			return true
		}
	}
	return slices.ContainsFunc(f.ranges, func(r netip.Prefix) bool { return r.Bits() <= p.Bits() && r.Contains(p.Addr()) })
}
