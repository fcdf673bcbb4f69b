package bgp

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Path is one way to a prefix that a peer told; local ones are our own.
type Path struct {
	Prefix          netip.Prefix
	From            netip.Addr // the peer
	NextHop         netip.Addr
	Local, External bool // External: learned over eBGP
	LocalPref, MED  uint32
	PathLength      int
	Origin          uint8
	ASPath          string
	Stale           bool // kept over a graceful restart of the peer
}

// equal says whether two paths may share the traffic.
func (p *Path) equal(o *Path) bool {
	return p.External == o.External && p.LocalPref == o.LocalPref && p.PathLength == o.PathLength && p.Origin == o.Origin && p.MED == o.MED
}

// Hop is one way out of the host.
type Hop struct {
	Gateway netip.Addr
	Link    int
}

func (h Hop) compare(o Hop) int { return cmp.Or(h.Gateway.Compare(o.Gateway), h.Link-o.Link) }

// FIB is what the kernel should have for one prefix: at least one hop, sorted.
type FIB struct {
	Prefix netip.Prefix
	Hops   []Hop
}

func (f FIB) same(o FIB) bool { return f.Prefix == o.Prefix && slices.Equal(f.Hops, o.Hops) }

// String shows the route as iproute2 does.
func (f FIB) String() string {
	var b strings.Builder
	b.WriteString(f.Prefix.String())
	for _, h := range f.Hops {
		fmt.Fprintf(&b, " via %s link %d", h.Gateway, h.Link)
	}
	return b.String()
}

var (
	errOwn    = errors.New("this node tells it itself")
	errNoHop  = errors.New("no next hop can be reached")
	errNoPath = errors.New("no path")
)

// choose takes the best of the paths whose next hop can be reached, and those as good as
// it. Paths come in the order of preference. resolve says how the host reaches a next hop.
func choose(prefix netip.Prefix, paths []Path, resolve func(netip.Addr) (Hop, error)) (FIB, error) {
	f := FIB{Prefix: prefix}
	if len(paths) == 0 {
		return f, errNoPath
	}
	if paths[0].Local {
		return f, errOwn
	}
	var best *Path
	var errs []error
	for i := range paths {
		p := &paths[i]
		if p.Local || best != nil && !best.equal(p) {
			continue
		}
		hop, err := resolve(p.NextHop)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if best == nil {
			best = p
		}
		if !slices.Contains(f.Hops, hop) {
			f.Hops = append(f.Hops, hop)
		}
	}
	if best == nil {
		return f, errors.Join(append([]error{errNoHop}, errs...)...)
	}
	slices.SortFunc(f.Hops, Hop.compare)
	return f, nil
}

// difference is what takes the kernel from have to want.
type difference struct{ add, replace, remove []FIB }

func (d *difference) size() int { return len(d.add) + len(d.replace) + len(d.remove) }

// diff compares; without prune nothing is removed.
func diff(want, have map[netip.Prefix]FIB, prune bool) difference {
	var d difference
	for prefix, w := range want {
		if h, ok := have[prefix]; !ok {
			d.add = append(d.add, w)
		} else if !w.same(h) {
			d.replace = append(d.replace, w)
		}
	}
	for prefix, h := range have {
		if _, ok := want[prefix]; !ok && prune {
			d.remove = append(d.remove, h)
		}
	}
	return d
}
