package bgp

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/vk-metal/vk-metal/hostgw"
)

// readRIB reads the prefixes that changed, or all.
func (s *Speaker) readRIB(all bool, dirty map[netip.Prefix]bool) error {
	const many = 256 // from then on one pass over everything is cheaper
	if !all && len(dirty) == 0 {
		return nil
	}
	if all || len(dirty) > many {
		rib, err := s.server.rib(nil)
		if err == nil {
			s.rib = rib
		}
		return err
	}
	part, err := s.server.rib(dirty)
	if err != nil {
		return err
	}
	for p := range dirty {
		if delete(s.rib, p); len(part[p]) > 0 {
			s.rib[p] = part[p]
		}
	}
	return nil
}

// applyFIB takes the kernel to what the paths say.
func (s *Speaker) applyFIB(e event, dirty map[netip.Prefix]bool) error {
	if !e.plan && !e.rib && !e.kernel && len(dirty) == 0 {
		return nil
	}
	var odd []netlink.Route
	if e.kernel || s.have == nil {
		var err error
		if s.subnets, err = hostgw.Subnets(s.k.h); err != nil {
			return err
		}
		if s.have, odd, err = s.k.routes(); err != nil {
			return err
		}
		s.seen.Lock()
		clear(s.seen.hops)
		s.seen.Unlock()
	}
	s.want, s.refused = map[netip.Prefix]FIB{}, map[netip.Prefix]error{}
	circular := map[netip.Addr]bool{}
	resolve := func(a netip.Addr) (Hop, error) {
		if _, known := circular[a]; !known {
			circular[a] = s.inside(a)
		}
		if circular[a] {
			return Hop{}, fmt.Errorf("next hop %s lies in a route that BGP told itself", a)
		}
		return s.resolve(a)
	}
	for prefix, paths := range s.rib {
		if err := s.decide(prefix, paths, resolve); err != nil {
			s.refused[prefix] = err
		}
	}
	d := diff(s.want, s.have, s.settled)
	if d.size() > 0 {
		s.log.Info("changing routes told by BGP", "add", len(d.add), "replace", len(d.replace), "remove", len(d.remove))
	}
	errs := []error{s.apply(d)}
	for i := range odd {
		if s.settled {
			errs = append(errs, s.k.h.RouteDel(&odd[i]))
		}
	}
	return errors.Join(errs...)
}

// inside says whether an address lies in a route that could be installed: as a next hop it
// could lead in a circle.
func (s *Speaker) inside(a netip.Addr) bool {
	for bits := 8; bits <= a.BitLen(); bits++ {
		p, err := a.Prefix(bits)
		if err == nil && len(s.rib[p]) > 0 && s.state.Filter.Check(p, s.subnets) == nil {
			return true
		}
	}
	return false
}

func (s *Speaker) decide(prefix netip.Prefix, paths []Path, resolve func(netip.Addr) (Hop, error)) error {
	if len(paths) > 0 && paths[0].Local {
		return nil // ours
	}
	if err := s.state.Filter.Check(prefix, s.subnets); err != nil {
		return err
	}
	f, err := choose(prefix, paths, resolve)
	if err == nil {
		s.want[prefix] = f
	}
	return err
}

// resolve asks the kernel once for each next hop between two of its events.
func (s *Speaker) resolve(a netip.Addr) (Hop, error) {
	s.seen.Lock()
	got, ok := s.seen.hops[a]
	s.seen.Unlock()
	if ok {
		return got.hop, got.err
	}
	got.hop, got.err = s.k.resolve(a)
	s.seen.Lock()
	defer s.seen.Unlock()
	s.seen.hops[a] = got
	if got.err == nil {
		s.seen.links[got.hop.Link] = true
	}
	return got.hop, got.err
}

// apply changes the kernel and remembers what it has: additions first, so that no packet
// finds nothing while a longer prefix takes the place of a shorter one.
func (s *Speaker) apply(d difference) error {
	s.seen.Lock()
	s.seen.ours = s.want
	s.seen.Unlock()
	var errs []error
	note := func(f FIB, err error, there bool) {
		if errs = append(errs, err); err == nil {
			if delete(s.have, f.Prefix); there {
				s.have[f.Prefix] = f
			}
		}
	}
	for _, f := range d.add {
		note(f, s.k.add(f), true)
	}
	for _, f := range d.replace {
		note(f, s.k.replace(f), true)
	}
	for _, f := range d.remove {
		note(f, s.k.remove(f), false)
	}
	return errors.Join(errs...)
}
