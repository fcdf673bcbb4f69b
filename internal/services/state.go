package services

import (
	"net/netip"
	"slices"
	"strings"
)

// claim is one Service's wish for something that only one can have.
type claim struct {
	service string
	age     int64 // of the Service, seconds since 1970: the oldest wins
	port    *Port
	front   *Frontend // nil for claims that carry no value
}

func (c *claim) compare(o *claim) int {
	if c.age != o.age {
		if c.age < o.age {
			return -1
		}
		return 1
	}
	return strings.Compare(c.service, o.service)
}

// claimKey is what is claimed: a frontend, a cluster IP as a whole (no protocol), or a
// hairpin (the address is this node's endpoint).
type claimKey struct {
	addr    netip.Addr
	proto   Protocol
	port    uint16
	hairpin bool
}

// state is what all Services want. Not safe for concurrent use.
type state struct {
	ports  map[string][]Port // by namespace/name
	claims map[claimKey][]claim
	groups map[string]*group // of ports with affinity
}

func newState() *state {
	return &state{ports: map[string][]Port{}, claims: map[claimKey][]claim{}, groups: map[string]*group{}}
}

// delta is what has to change in the kernel.
type delta struct {
	del, add elements
	// groups by chain name: nil is to be removed.
	groups map[string]*group
	flows  flows
}

func (d *delta) empty() bool { return len(d.del) == 0 && len(d.add) == 0 && len(d.groups) == 0 }

// set replaces what one Service wants and says what changes by it.
func (s *state) set(service string, age int64, ports []Port) *delta {
	before, after := elements{}, elements{}
	keys := map[claimKey]bool{}
	old := s.ports[service]
	s.exchange(service, age, ports, func(key claimKey, swap func()) {
		keys[key] = true
		s.renderClaim(key, before)
		swap()
		s.renderClaim(key, after)
	})
	d := &delta{del: before.minus(after), add: after.minus(before), groups: s.regroup(old, ports)}
	if !d.empty() || !slices.EqualFunc(old, ports, func(a, b Port) bool { return slices.Equal(a.Serving, b.Serving) }) {
		d.flows = s.flowsOf(keys)
	}
	return d
}

// load replaces what one Service wants before the whole is put in place.
func (s *state) load(service string, age int64, ports []Port) {
	old := s.ports[service]
	s.exchange(service, age, ports, func(_ claimKey, swap func()) { swap() })
	s.regroup(old, ports)
}

// exchange calls each for everything that the Service claimed or will claim; swap puts the
// new claim in place.
func (s *state) exchange(service string, age int64, ports []Port, each func(key claimKey, swap func())) {
	mine := map[claimKey]claim{}
	for i := range ports {
		claimsOf(&ports[i], func(key claimKey, f *Frontend) {
			if _, twice := mine[key]; !twice {
				mine[key] = claim{service, age, &ports[i], f}
			}
		})
	}
	old := s.ports[service]
	for i := range old {
		claimsOf(&old[i], func(key claimKey, _ *Frontend) {
			if _, stays := mine[key]; !stays && slices.ContainsFunc(s.claims[key], func(c claim) bool { return c.service == service }) {
				each(key, func() { s.claim(key, service, nil) })
			}
		})
	}
	for key, c := range mine {
		each(key, func() { s.claim(key, service, &c) })
	}
	if s.ports[service] = ports; len(ports) == 0 {
		delete(s.ports, service)
	}
}

// claim puts the Service's claim (nil: none) in place of its former one.
func (s *state) claim(key claimKey, service string, mine *claim) {
	list := slices.DeleteFunc(slices.Clone(s.claims[key]), func(c claim) bool { return c.service == service })
	if mine != nil {
		list = append(list, *mine)
		slices.SortFunc(list, func(a, b claim) int { return a.compare(&b) })
	}
	if s.claims[key] = list; len(list) == 0 {
		delete(s.claims, key)
	}
}

// claimsOf calls each for everything that the port claims.
func claimsOf(p *Port, each func(claimKey, *Frontend)) {
	for i := range p.Frontend {
		f := &p.Frontend[i]
		each(claimKey{addr: f.Addr, proto: p.Protocol, port: f.Port}, f)
		if f.Kind == ClusterIP {
			each(claimKey{addr: f.Addr}, nil)
		}
	}
	for _, near := range p.Near {
		each(claimKey{addr: near, hairpin: true}, nil)
	}
}

// renderClaim adds the elements of whoever has the claim.
func (s *state) renderClaim(key claimKey, e sink) {
	list := s.claims[key]
	if len(list) == 0 {
		return
	}
	addr := string(key.addr.AsSlice())
	switch {
	case key.hairpin:
		e.put(setName{key.addr.Is6(), setHairpins}, addr+addr, "")
	case list[0].front == nil:
		e.put(setName{key.addr.Is6(), setClusterIPs}, addr, "")
	default:
		list[0].port.render(list[0].front, e)
	}
}

// all is the whole content, to be compared.
func (s *state) all() (elements, map[string]*group) {
	e := elements{}
	for key := range s.claims {
		s.renderClaim(key, e)
	}
	return e, s.groups
}

// whole is the whole content, to be put in place. Claims are all of different keys, so no key of
// an element is there twice.
func (s *state) whole() (listed, map[string]*group) {
	l := listed{}
	for ipv6, n := range s.countEndpoints() {
		slots := make([]element, 0, n)
		l[setName{ipv6, mapSlots}] = &slots
	}
	for key := range s.claims {
		s.renderClaim(key, l)
	}
	return l, s.groups
}

// countEndpoints is how many slots there will be about, by IP version; none is not told.
func (s *state) countEndpoints() map[bool]int {
	out := map[bool]int{}
	for _, ports := range s.ports {
		for i := range ports {
			if n := len(ports[i].Cluster) + len(ports[i].Here); n > 0 {
				out[ports[i].IPv6()] += n
			}
		}
	}
	return out
}

// merge makes d the change of d and then next.
func (d *delta) merge(next *delta) {
	if d.del == nil {
		d.del, d.add, d.groups, d.flows = elements{}, elements{}, map[string]*group{}, flows{}
	}
	fold(next.del, d.add, d.del)
	fold(next.add, d.del, d.add)
	for name, g := range next.groups {
		d.groups[name] = g
	}
	d.flows.merge(next.flows)
}

// fold takes what it undoes out of undone, and puts the rest into done.
func fold(e, undone, done elements) {
	for set, kv := range e {
		for k, v := range kv {
			if have, ok := undone[set][k]; ok && have == v {
				delete(undone[set], k)
				continue
			}
			done.put(set, k, v)
		}
	}
}
