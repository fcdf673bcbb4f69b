package services

import (
	"cmp"
	"net/netip"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
)

// endpoint is one endpoint of one port of a Service.
type endpoint struct {
	addr        netip.AddrPort
	ready       bool
	serving     bool
	terminating bool
	near        bool // on this node
	nodes       []string
	zones       []string
}

// rank orders what two slices say of the same address while an endpoint moves between them.
func (e *endpoint) rank() int {
	switch {
	case e.ready:
		return 2
	case e.serving:
		return 1
	}
	return 0
}

// portEndpoints lists the endpoints of one Service port in one IP version, sorted by address.
func portEndpoints(sliceList []*discoveryv1.EndpointSlice, ipv6 bool, name string, proto Protocol, node string) []endpoint {
	family := discoveryv1.AddressTypeIPv4
	if ipv6 {
		family = discoveryv1.AddressTypeIPv6
	}
	var out []endpoint
	for _, s := range sliceList {
		if s.AddressType != family {
			continue
		}
		for _, port := range slicePorts(s, name, proto) {
			out = slices.Grow(out, len(s.Endpoints))
			for i := range s.Endpoints {
				if e, ok := newEndpoint(&s.Endpoints[i], port, ipv6, node); ok {
					out = append(out, e)
				}
			}
		}
	}
	// What is told twice counts once: the best, then the first.
	slices.SortStableFunc(out, func(a, b endpoint) int {
		return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(b.rank(), a.rank()))
	})
	return slices.CompactFunc(out, func(a, b endpoint) bool { return a.addr == b.addr })
}

// slicePorts are the numbers that the slice has for the Service port of this name: named
// target ports differ between slices.
func slicePorts(s *discoveryv1.EndpointSlice, name string, proto Protocol) []uint16 {
	var out []uint16
	for _, p := range s.Ports {
		sliceName, sliceProto := "", protocolOf("")
		if p.Name != nil {
			sliceName = *p.Name
		}
		if p.Protocol != nil {
			sliceProto = protocolOf(*p.Protocol)
		}
		if p.Port != nil && *p.Port > 0 && *p.Port < 1<<16 && sliceName == name && sliceProto == proto {
			out = append(out, uint16(*p.Port))
		}
	}
	return out
}

// newEndpoint is false for an address that no packet may be sent to on a Service's behalf. A
// condition that is not told is so, but for terminating (discovery.k8s.io/v1, EndpointConditions).
func newEndpoint(e *discoveryv1.Endpoint, port uint16, ipv6 bool, node string) (out endpoint, ok bool) {
	if len(e.Addresses) == 0 {
		return out, false
	}
	addr, err := netip.ParseAddr(e.Addresses[0])
	if err != nil || addr.Zone() != "" || addr.Is6() != ipv6 || addr.IsLoopback() || addr.IsUnspecified() || addr.IsMulticast() {
		return out, false
	}
	out = endpoint{addr: netip.AddrPortFrom(addr, port), ready: true, serving: true, near: e.NodeName != nil && *e.NodeName == node}
	if c := e.Conditions.Ready; c != nil {
		out.ready = *c
	}
	if c := e.Conditions.Serving; c != nil {
		out.serving = *c
	}
	if c := e.Conditions.Terminating; c != nil {
		out.terminating = *c
	}
	if e.Hints != nil {
		for _, n := range e.Hints.ForNodes {
			out.nodes = append(out.nodes, n.Name)
		}
		for _, z := range e.Hints.ForZones {
			out.zones = append(out.zones, z.Name)
		}
	}
	return out, true
}

// usable picks the endpoints that may get new connections: the ready ones, or, when there
// is none, those that end but still serve.
func usable(list []endpoint) []endpoint {
	ready := filter(list, func(e *endpoint) bool { return e.ready })
	if len(ready) > 0 {
		return ready
	}
	return filter(list, func(e *endpoint) bool { return e.serving && e.terminating })
}

// serving are the addresses of those that answer clients which they have, whether or not they may get
// new ones.
func serving(list []endpoint) (out []netip.AddrPort) {
	for i := range list {
		if e := &list[i]; e.ready || e.serving {
			out = append(out, e.addr)
		}
	}
	return out
}

// preferred narrows the endpoints to those that the hints give to this node, else to this
// zone, else takes all. Hints count only if every ready endpoint has them.
func preferred(list []endpoint, node, zone string) []endpoint {
	ready := filter(list, func(e *endpoint) bool { return e.ready })
	if len(ready) == 0 {
		return usable(list)
	}
	choices := []struct {
		want string
		of   func(*endpoint) []string
	}{{node, func(e *endpoint) []string { return e.nodes }}, {zone, func(e *endpoint) []string { return e.zones }}}
	for _, c := range choices {
		if !all(ready, func(e *endpoint) bool { return len(c.of(e)) > 0 }) {
			continue
		}
		if mine := filter(ready, func(e *endpoint) bool { return slices.Contains(c.of(e), c.want) }); len(mine) > 0 {
			return mine
		}
	}
	return ready
}

// filter is the list itself where all of it is kept, as of most Services.
func filter(list []endpoint, keep func(*endpoint) bool) []endpoint {
	if all(list, keep) {
		return list
	}
	var out []endpoint
	for i := range list {
		if keep(&list[i]) {
			out = append(out, list[i])
		}
	}
	return out
}

// all says whether each is so. (The functions of slices would copy every endpoint to the heap.)
func all(list []endpoint, is func(*endpoint) bool) bool {
	for i := range list {
		if !is(&list[i]) {
			return false
		}
	}
	return true
}

// maxSlots bounds the endpoints of a port; slots of local endpoints start there.
const maxSlots = 1 << 16

// place gives endpoints their slots. Those that had one keep it as far as possible, so that
// one endpoint's coming or going changes few elements of the kernel's maps.
func place(old []netip.AddrPort, list []endpoint) []netip.AddrPort {
	if len(list) > maxSlots {
		list = list[:maxSlots]
	}
	if len(list) == 0 {
		return nil
	}
	if len(old) == 0 { // sorted as they are
		out := make([]netip.AddrPort, len(list))
		for i := range list {
			out[i] = list[i].addr
		}
		return out
	}
	want := make(map[netip.AddrPort]bool, len(list))
	for _, e := range list {
		want[e.addr] = true
	}
	out := make([]netip.AddrPort, len(list))
	var moving []netip.AddrPort
	for i, a := range old {
		switch {
		case !want[a]:
			continue
		case i < len(out):
			out[i] = a
		default:
			moving = append(moving, a)
		}
		delete(want, a)
	}
	for a := range want {
		moving = append(moving, a)
	}
	slices.SortFunc(moving, func(a, b netip.AddrPort) int { return cmp.Or(a.Compare(b)) })
	for i := range out {
		if !out[i].IsValid() {
			out[i], moving = moving[0], moving[1:]
		}
	}
	return out
}
