package hostgw

import (
	"net"
	"net/netip"
)

// guard lets VXLAN in from the nodes only, while there is any.
func (r *Router) guard(p *plan, check bool) error {
	var nodes []netip.Addr
	if len(p.underlay) > 0 {
		for _, peer := range p.in.peers {
			nodes = append(nodes, peer.Addrs...)
		}
	}
	return r.door.sync(r.over.port, nodes, check)
}

// prepareOverlay makes what the plan's encapsulated routes need, and completes them.
func (r *Router) prepareOverlay(p *plan) error {
	if len(p.underlay) == 0 {
		return nil
	}
	mtu, err := r.k.overlayMTU(p)
	if err != nil {
		return err
	}
	link, err := r.k.ensureOverlay(r.ns, r.over, mtu)
	if err != nil {
		return err
	}
	var self []netip.Prefix
	neighbours := map[netip.Addr]net.HardwareAddr{}
	for dst, route := range p.routes {
		if route.outer.IsValid() {
			route.link = link
			p.routes[dst] = route
			neighbours[route.gw] = vtepMAC(p.owner[dst])
		} else if route.unreachable {
			self = append(self, dst)
		}
	}
	if err := SyncAddresses(r.k.h, link, overlayLink, self); err != nil {
		return err
	}
	return r.k.syncNeighbours(link, neighbours)
}
