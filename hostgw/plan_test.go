package hostgw

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
)

func apiNode(name, cidrs string, addrs ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: strings.Fields(cidrs)}}
	for _, a := range addrs {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: name})
	return n
}

func TestPeersFromNodes(t *testing.T) {
	old := apiNode("old", "", "192.0.2.5")
	old.Spec.PodCIDR = "10.244.5.0/24"
	peers, err := PeersFromNodes([]*corev1.Node{
		apiNode("self", "10.244.1.0/24", "192.0.2.1"),
		apiNode("b", "10.244.2.0/24 fd00:2::/64", "192.0.2.2", "2001:db8::2"),
		apiNode("fresh", "", "192.0.2.3"),
		apiNode("bare", "10.244.4.0/24"),
		old,
		apiNode("half", "10.244.6.0/24 10.244.6.1/24 nonsense 0.0.0.0/0", "192.0.2.6", "nonsense"),
	}, "self")
	want := []Peer{
		peer("b", "192.0.2.2 2001:db8::2", "10.244.2.0/24 fd00:2::/64"), peer("old", "192.0.2.5", "10.244.5.0/24"), peer("half", "192.0.2.6", "10.244.6.0/24"),
	}
	if fmt.Sprint(peers) != fmt.Sprint(want) {
		t.Errorf("peers: %v, want %v", peers, want)
	}
	if err == nil || strings.Count(err.Error(), "node half") != 4 || !errors.Is(err, ErrRefused) {
		t.Errorf("error: %v", err)
	}
}

// TestDiffConverges: what diff says, applied to any kernel state, gives the plan.
func TestDiffConverges(t *testing.T) {
	routes := rapid.Custom(func(t *rapid.T) map[netip.Prefix]route {
		m := map[netip.Prefix]route{}
		for i := range rapid.IntRange(0, 6).Draw(t, "n") {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 0}), 24)
			r := route{dst: p, unreachable: rapid.Bool().Draw(t, "unreachable")}
			if !r.unreachable {
				r.gw, r.link = netip.AddrFrom4([4]byte{192, 0, 2, byte(rapid.IntRange(1, 3).Draw(t, "gw"))}), rapid.IntRange(1, 2).Draw(t, "link")
			}
			m[p] = r
		}
		return m
	})
	rapid.Check(t, func(t *rapid.T) {
		want, have := routes.Draw(t, "want"), routes.Draw(t, "have")
		d := diff(want, have, nil)
		for _, r := range d.remove {
			if _, ok := have[r.dst]; !ok {
				t.Fatalf("removes %v, which is not there", r)
			}
			delete(have, r.dst)
		}
		for _, r := range d.add {
			if _, ok := have[r.dst]; ok {
				t.Fatalf("adds %v over another", r)
			}
			have[r.dst] = r
		}
		for _, r := range d.replace {
			if _, ok := have[r.dst]; !ok {
				t.Fatalf("replaces %v, which is not there", r)
			}
			have[r.dst] = r
		}
		if fmt.Sprint(have) != fmt.Sprint(want) {
			t.Fatalf("the kernel has %v, want %v", have, want)
		}
		if again := diff(want, have, nil); len(again.add)+len(again.remove)+len(again.replace) > 0 {
			t.Fatalf("a second time: %+v", again)
		}
	})
}

// TestPlanNeverOverlaps: whatever the Nodes say, no route covers a local subnet, a node
// or another route.
func TestPlanNeverOverlaps(t *testing.T) {
	lookup := func(a netip.Addr) (hop, error) { return hop{link: 2, onLink: a.As4()[3]%2 == 0}, nil }
	subnets := prefixes("192.0.2.0/24")
	rapid.Check(t, func(t *rapid.T) {
		in := inputs{self: prefixes("10.0.0.0/24"), subnets: subnets, lookup: lookup, encap: rapid.SampledFrom([]Encapsulation{"", EncapNever, EncapCrossSubnet, EncapAlways}).Draw(t, "encap")}
		for i := range rapid.IntRange(0, 8).Draw(t, "peers") {
			p := Peer{Name: fmt.Sprint(i), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, rapid.SampledFrom([]byte{2, 3}).Draw(t, "net"), byte(i)})}}
			a := netip.AddrFrom4([4]byte{rapid.SampledFrom([]byte{10, 192}).Draw(t, "a"), 0, byte(rapid.IntRange(0, 4).Draw(t, "c")), 0})
			cidr, _ := a.Prefix(rapid.IntRange(0, 32).Draw(t, "bits"))
			p.PodCIDRs = []netip.Prefix{cidr}
			in.peers = append(in.peers, p)
		}
		p := makePlan(in)
		var dsts []netip.Prefix
		for dst, r := range p.routes {
			if r.unreachable {
				continue
			}
			for _, o := range slices.Concat(dsts, subnets, in.self) {
				if dst.Overlaps(o) {
					t.Fatalf("%s overlaps %s", dst, o)
				}
			}
			for _, peer := range in.peers {
				if dst.Contains(peer.Addrs[0]) {
					t.Fatalf("%s holds node %s", dst, peer.Addrs[0])
				}
			}
			dsts = append(dsts, dst)
		}
		for _, peer := range in.peers {
			if _, ok := p.routes[peer.PodCIDRs[0]]; !ok && len(p.errs[peer.Name]) == 0 {
				t.Fatalf("peer %v has neither route nor error", peer)
			}
		}
	})
}

type nothing struct{}

func (nothing) hasRoute(netip.Prefix) bool { return false }
func (nothing) usesLink(int) bool          { return false }
func (nothing) tunnelLink(int) bool        { return false }
func (nothing) asked(netip.Addr) bool      { return false }

// FuzzJudge: no message of the kernel, however short, ends the agent.
func FuzzJudge(f *testing.F) {
	f.Add(uint16(24), []byte{2, 24, 0, 0, 254, 118, 0, 1, 0, 0, 0, 0, 8, 0, 1, 0, 10, 0, 0, 0})
	f.Add(uint16(25), []byte{10})
	f.Add(uint16(16), []byte{0, 0, 0, 0, 1})
	f.Add(uint16(20), []byte{2, 24, 0, 0})
	f.Fuzz(func(_ *testing.T, kind uint16, data []byte) {
		judge(&syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: data}, nothing{})
	})
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{Encapsulation: "Sometimes"}, {Encapsulation: EncapAlways}, {HostNetNS: "/none"}, {HostNetNS: "/etc/hostname"}} {
		if _, err := New(o); err == nil {
			t.Errorf("New(%+v): no error", o)
		} else {
			t.Log(err)
		}
	}
}
