package services

import (
	"net/netip"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

// byNear indexes slices by the addresses of this node's endpoints.
const byNear = "near"

// nearIndex lists them.
func nearIndex(node string) cache.IndexFunc {
	return func(obj any) (out []string, _ error) {
		s, ok := obj.(*discoveryv1.EndpointSlice)
		if !ok {
			return nil, nil
		}
		for i := range s.Endpoints {
			if e := &s.Endpoints[i]; e.NodeName != nil && *e.NodeName == node {
				out = append(out, e.Addresses...)
			}
		}
		return out, nil
	}
}

// SetReady tells whether a pod of this node, by its own addresses, is ready. One that is not
// gets no new connections from here at once, before its EndpointSlices say so; that it is,
// they have to say themselves. A pod that is gone has to be told as ready.
func (p *Proxy) SetReady(addrs []netip.Addr, ready bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range addrs {
		if p.unready[a] == !ready {
			continue
		}
		if p.unready[a] = true; ready {
			delete(p.unready, a)
		}
		objs, _ := p.slices.ByIndex(byNear, a.String())
		for _, obj := range objs {
			if service := serviceOf(obj); service != "" {
				p.dirty[service] = true
			}
		}
	}
	if len(p.dirty) > 0 {
		signal(p.wake)
	}
}

// readiness is NodeFacts.Unready: it asks what SetReady told.
func (p *Proxy) readiness(a netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unready[a]
}

// withdraw takes readiness from the endpoints of this node that are known not to have it.
func withdraw(list []endpoint, unready func(netip.Addr) bool) []endpoint {
	stays := func(e *endpoint) bool { return !e.near || !unready(e.addr.Addr()) }
	if unready == nil || all(list, stays) {
		return list
	}
	list = slices.Clone(list)
	for i := range list {
		if e := &list[i]; !stays(e) {
			e.ready, e.serving = false, false
		}
	}
	return list
}
