package hostgw

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// apply takes the kernel from have to the plan: removals first, then what is new. A
// route that cannot be set is its peer's error; the rest goes on.
func (r *Router) apply(p *plan, d difference, have map[netip.Prefix]route) error {
	if len(d.remove)+len(d.add)+len(d.replace) > 0 {
		r.log.Info("changing routes to other nodes", "add", len(d.add), "replace", len(d.replace), "remove", len(d.remove))
	}
	r.mu.Lock()
	r.have = have
	r.mu.Unlock()
	var errs []error
	for _, old := range d.remove {
		if have[old.dst].same(old) { // not one of several
			r.set(old, false)
		}
		errs = append(errs, r.k.remove(old))
	}
	for i, route := range slices.Concat(d.add, d.replace) {
		do := r.k.add
		if i >= len(d.add) {
			do = r.k.replace
		}
		err := do(route)
		r.set(route, err == nil)
		if owner := p.owner[route.dst]; err != nil && owner != "" {
			p.errs[owner] = append(p.errs[owner], err)
		}
		if !errors.Is(err, ErrConflict) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// set notes what the kernel has, before its events come.
func (r *Router) set(now route, there bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.have, now.dst)
	if there {
		r.have[now.dst] = now
	}
}

// difference is what apply has to do.
type difference struct{ remove, add, replace []route }

// diff compares wanted and existing routes.
func diff(want, have map[netip.Prefix]route, extra []route) difference {
	d := difference{remove: extra}
	for dst := range have {
		if _, both := want[dst]; !both {
			d.compare(dst, want, have)
		}
	}
	for dst := range want {
		d.compare(dst, want, have)
	}
	return d
}

// compare adds what has to be done for one destination.
func (d *difference) compare(dst netip.Prefix, want, have map[netip.Prefix]route) {
	w, wanted := want[dst]
	h, there := have[dst]
	replaced := wanted && there && w.last() == h.last()
	if there && !replaced {
		d.remove = append(d.remove, h)
	}
	switch {
	case wanted && !replaced:
		d.add = append(d.add, w)
	case wanted && !w.same(h):
		d.replace = append(d.replace, w)
	}
}

// report stores each peer's status and logs what changed.
func (r *Router) report(p *plan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	links := map[int]bool{}
	for _, h := range r.have {
		links[h.link] = true
	}
	r.links = links
	before := r.status
	r.status = make(map[string]PeerStatus, len(p.in.peers))
	for _, peer := range p.in.peers {
		r.reportPeer(peer, p, before[peer.Name])
	}
}

// reportSome does it for the peers that changed.
func (r *Router) reportSome(t touched, p *plan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for dst := range t.dsts {
		if h, ok := r.have[dst]; ok {
			r.links[h.link] = true // one that is not used any more is harmless
		}
	}
	for name, peer := range t.peers {
		before := r.status[name]
		if delete(r.status, name); peer != nil {
			r.reportPeer(*peer, p, before)
		}
	}
}

// reportPeer stores one status. The lock is held.
func (r *Router) reportPeer(peer Peer, p *plan, before PeerStatus) {
	s := PeerStatus{Name: peer.Name, Err: errors.Join(p.errs[peer.Name]...)}
	for _, cidr := range peer.PodCIDRs {
		if _, ok := r.have[cidr]; ok && p.owner[cidr] == peer.Name {
			s.Routes = append(s.Routes, cidr)
		}
	}
	if s.Err != nil && fmt.Sprint(s.Err) != fmt.Sprint(before.Err) {
		r.log.Warn("no route to the pods of a node", "node", peer.Name, "error", s.Err)
	}
	r.status[peer.Name] = s
}
