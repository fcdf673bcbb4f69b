package hostgw

import (
	"net/netip"
	"slices"
)

// touched is what a plan changed of the one before.
type touched struct {
	dsts  map[netip.Prefix]bool
	peers map[string]*Peer // that changed or are new; nil are gone
}

// advance makes the plan the one for other peers, looking only at those that changed: of 5,000
// nodes it is one, and the host's own addresses and the ways to nodes are as they were. It is
// false, and the plan is of no use any more, where the answer may depend on all of them: when
// something is refused (who comes first has a podCIDR), before or now, and with encapsulation.
func (p *plan) advance(in inputs) (touched, bool) {
	t := touched{dsts: map[netip.Prefix]bool{}, peers: map[string]*Peer{}}
	if in.encap != p.in.encap || !slices.Equal(in.self, p.in.self) || !slices.Equal(in.subnets, p.in.subnets) || len(p.errs)+len(p.underlay) > 0 {
		return t, false
	}
	in.peers = byName(in.peers)
	gone, came, ok := changedPeers(p.in.peers, in.peers)
	if !ok {
		return t, false
	}
	p.in = in
	for _, peer := range gone {
		t.peers[peer.Name] = nil
		p.forget(peer, t)
	}
	for _, peer := range came {
		for _, a := range peer.Addrs {
			i, _ := slices.BinarySearchFunc(p.nodes, a, netip.Addr.Compare)
			p.nodes = slices.Insert(p.nodes, i, a)
		}
	}
	for _, peer := range came {
		t.peers[peer.Name] = &peer
		if !p.welcome(peer, t) {
			return t, false
		}
	}
	return t, true
}

// forget takes out what the plan has of a peer.
func (p *plan) forget(peer Peer, t touched) {
	for _, cidr := range peer.PodCIDRs {
		t.dsts[cidr] = true
		delete(p.routes, cidr)
		delete(p.owner, cidr)
		p.taken.drop(cidr)
	}
	for _, a := range peer.Addrs {
		if i, there := slices.BinarySearchFunc(p.nodes, a, netip.Addr.Compare); there {
			p.nodes = slices.Delete(p.nodes, i, i+1)
		}
	}
}

// welcome plans for a peer; false if anything is refused by it.
func (p *plan) welcome(peer Peer, t touched) bool {
	for _, a := range peer.Addrs {
		if other, ok := p.taken.overlap(netip.PrefixFrom(a, a.BitLen())); ok && p.owner[other] != "" {
			return false // a podCIDR holds the node's address
		}
	}
	for _, cidr := range peer.PodCIDRs {
		t.dsts[cidr] = true
		if p.take(peer, cidr) != nil || len(p.underlay) > 0 {
			return false
		}
	}
	return true
}

// changedPeers compares two lists that are sorted by name: what is only in the one, what is
// only in the other. It is false if a name is there twice.
func changedPeers(before, now []Peer) (gone, came []Peer, ok bool) {
	for i, j := 0, 0; i < len(before) || j < len(now); {
		if i+1 < len(before) && before[i].Name == before[i+1].Name || j+1 < len(now) && now[j].Name == now[j+1].Name {
			return nil, nil, false
		}
		switch {
		case j == len(now) || i < len(before) && before[i].Name < now[j].Name:
			gone = append(gone, before[i])
			i++
		case i == len(before) || now[j].Name < before[i].Name:
			came = append(came, now[j])
			j++
		default:
			if !slices.Equal(before[i].Addrs, now[j].Addrs) || !slices.Equal(before[i].PodCIDRs, now[j].PodCIDRs) {
				gone, came = append(gone, before[i]), append(came, now[j])
			}
			i, j = i+1, j+1
		}
	}
	return gone, came, true
}
