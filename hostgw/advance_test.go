package hostgw

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestAdvance: a plan that is advanced from one list of peers to the next, as often as it can
// be, is the plan that is made of the last; and what it does not say it touched is as it was.
func TestAdvance(t *testing.T) {
	cidrs := rapid.SampledFrom(prefixes("10.1.0.0/24 10.1.1.0/24 10.1.2.0/24 10.1.3.0/24 10.1.2.0/23 10.1.4.0/24 10.1.5.0/24 10.1.0.0/16 192.0.2.0/28 198.51.100.0/25 fd00:1::/64 fd00:2::/64"))
	addrs := rapid.SampledFrom(peer("", "192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.33 192.0.2.34 10.1.4.9 203.0.113.1 2001:db8::1 2001:db8::2", "").Addrs)
	names := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f", "g"})
	peers := rapid.Custom(func(t *rapid.T) Peer {
		return Peer{
			Name: names.Draw(t, "name"), Addrs: rapid.SliceOfNDistinct(addrs, 0, 2, rapid.ID).Draw(t, "addresses"),
			PodCIDRs: rapid.SliceOfNDistinct(cidrs, 0, 2, rapid.ID).Draw(t, "podCIDRs"),
		}
	})
	lookup := func(a netip.Addr) (hop, error) {
		switch {
		case a == netip.MustParseAddr("203.0.113.1"):
			return hop{}, errors.New("unreachable")
		case a == netip.MustParseAddr("192.0.2.3"):
			return hop{link: 3}, nil
		}
		return hop{link: 2, onLink: true}, nil
	}
	advanced := 0
	rapid.Check(t, func(t *rapid.T) {
		encap := rapid.SampledFrom([]Encapsulation{EncapNever, EncapNever, EncapCrossSubnet}).Draw(t, "encapsulation")
		in := inputs{self: prefixes("10.1.5.0/24"), subnets: prefixes("192.0.2.0/24 198.51.100.0/24"), encap: encap, lookup: lookup}
		p := makePlan(in)
		for range rapid.IntRange(1, 6).Draw(t, "steps") {
			in.peers = append([]Peer(nil), in.peers...)
			for range rapid.IntRange(0, 2).Draw(t, "changes") {
				now := peers.Draw(t, "peer")
				in.peers = slices.DeleteFunc(in.peers, func(o Peer) bool { return o.Name == now.Name })
				if rapid.IntRange(0, 3).Draw(t, "kept") > 0 {
					in.peers = append(in.peers, now)
				}
			}
			before := maps.Clone(p.routes)
			want := makePlan(in)
			tt, ok := p.advance(in)
			if !ok {
				p = want
				continue
			}
			advanced++
			if fmt.Sprint(p.routes, p.owner, p.errs, p.underlay, p.nodes, p.taken) != fmt.Sprint(want.routes, want.owner, want.errs, want.underlay, want.nodes, want.taken) {
				t.Fatalf("advanced:\n%v\nmade:\n%v", p, want)
			}
			for dst := range tt.dsts {
				delete(before, dst)
			}
			for dst, r := range before {
				if p.routes[dst] != r {
					t.Fatalf("%v became %v, untouched", r, p.routes[dst])
				}
			}
		}
	})
	if advanced < 50 {
		t.Errorf("only %d plans were advanced", advanced)
	}
}

// TestAdvanceOne: of many nodes only the one that changed is looked at, and told of.
func TestAdvanceOne(t *testing.T) {
	var list []Peer
	for i := range 100 {
		list = append(list, peer(fmt.Sprintf("node-%02d", i), fmt.Sprintf("192.0.2.%d", i+1), fmt.Sprintf("10.1.%d.0/24", i)))
	}
	asked := 0
	in := inputs{peers: list, subnets: prefixes("192.0.2.0/24"), lookup: func(netip.Addr) (hop, error) {
		asked++
		return hop{link: 2, onLink: true}, nil
	}}
	p := makePlan(in)
	asked = 0
	in.peers = slices.Clone(list)
	in.peers[40] = peer("node-40", "192.0.2.240", "10.1.40.0/24")
	in.peers = slices.Delete(in.peers, 7, 8)
	got, ok := p.advance(in)
	if !ok || asked != 1 || len(got.dsts) != 2 || len(got.peers) != 2 || got.peers["node-40"] == nil || got.peers["node-07"] != nil {
		t.Errorf("advanced %t, %d lookups, touched %v", ok, asked, got)
	}
}
