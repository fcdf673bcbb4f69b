package hostgw

import (
	"errors"
	"testing"
)

const (
	nodeB = "192.0.2.2 2001:db8::2"
	cidrB = "10.244.2.0/24 fd00:244:2::/64"
)

func TestRoutesFollowPeers(t *testing.T) {
	l := newLab(t)
	a := l.host("a", "192.0.2.1/24", "2001:db8::1/64")
	l.In(a.ns, "ip route add unreachable 10.250.0.0/24 proto static", // somebody else's
		"ip route add 10.244.77.0/24 via 192.0.2.9 proto 118") // of an earlier run
	r, stop := l.router(a)
	r.SetSelf(prefixes("10.244.1.0/24 fd00:244:1::/64"))
	own := []string{"unreachable 10.244.1.0/24", "unreachable fd00:244:1::/64"}
	b4, b6 := "10.244.2.0/24 via 192.0.2.2", "fd00:244:2::/64 via 2001:db8::2"
	r.SetPeers([]Peer{peer("b", nodeB, cidrB)})
	l.becomes(a, append(own, b4, b6)...)

	t.Run("add", func(t *testing.T) {
		r.SetPeers([]Peer{peer("b", nodeB, cidrB), peer("c", "192.0.2.3", "10.244.3.0/24")})
		l.becomes(a, append(own, b4, b6, "10.244.3.0/24 via 192.0.2.3")...)
	})
	t.Run("change the address", func(t *testing.T) {
		r.SetPeers([]Peer{peer("b", "192.0.2.4 2001:db8::4", cidrB)})
		l.becomes(a, append(own, "10.244.2.0/24 via 192.0.2.4", "fd00:244:2::/64 via 2001:db8::4")...)
		r.SetPeers([]Peer{peer("b", nodeB, cidrB)})
		l.becomes(a, append(own, b4, b6)...)
	})
	t.Run("somebody deletes", func(t *testing.T) {
		l.In(a.ns, "ip route del 10.244.2.0/24", "ip -6 route del fd00:244:2::/64")
		l.becomes(a, append(own, b4, b6)...)
	})
	t.Run("link flap", func(t *testing.T) {
		l.In(a.ns, "ip link set uplink down")
		l.becomes(a, own...)
		l.In(a.ns, "ip link set uplink up", "ip addr add 2001:db8::1/64 dev uplink nodad") // the kernel drops IPv6 addresses
		l.becomes(a, append(own, b4, b6)...)
	})
	t.Run("the routes outlive the agent", func(t *testing.T) {
		stop()
		l.becomes(a, append(own, b4, b6)...)
		again, _ := l.router(a)
		l.becomes(a, append(own, b4, b6)...) // nothing is removed before the peers are known
		again.SetPeers(nil)
		l.becomes(a)
	})
	if got := l.routes(a, 4); len(got) != 1 {
		t.Errorf("another program's routes: %v", got)
	}
}

func TestPeersThatCannotBeReached(t *testing.T) {
	l := newLab(t)
	a := l.host("a", "192.0.2.1/24", "2001:db8::1/64")
	l.In(a.ns, "ip route add default via 192.0.2.254", "ip route add 10.244.9.0/24 via 192.0.2.9 proto static")
	r, _ := l.router(a)
	r.SetSelf(prefixes("10.244.1.0/24"))
	r.SetPeers([]Peer{
		peer("far", "203.0.113.7", "10.244.7.0/24"),
		peer("good", "192.0.2.2", "10.244.2.0/24"),
		peer("me", "192.0.2.1", "10.244.3.0/24"),
		peer("no-v6", "192.0.2.4", "fd00:4::/64"),
		peer("on-lan", "192.0.2.5", "192.0.2.128/25"),
		peer("mine", "192.0.2.6", "10.244.0.0/16"),
		peer("twin", "192.0.2.8", "10.244.2.0/25"),
		peer("taken", "192.0.2.9", "10.244.9.0/24"),
		peer("swallows", "192.0.2.10", "203.0.113.0/24"),
		peer("all", "192.0.2.11", "0.0.0.0/0"),
	})
	l.becomes(a, "unreachable 10.244.1.0/24", "10.244.2.0/24 via 192.0.2.2")
	ready(t, r)
	want := map[string]error{
		"far": ErrOtherSubnet, "good": nil, "me": ErrRefused, "no-v6": errAny, "on-lan": ErrRefused,
		"mine": ErrRefused, "twin": ErrRefused, "taken": ErrConflict, "swallows": ErrRefused, "all": ErrRefused,
	}
	for _, s := range r.Status() {
		w := want[s.Name]
		if w == nil && s.Err != nil || w != nil && s.Err == nil || !errors.Is(w, errAny) && !errors.Is(s.Err, w) {
			t.Errorf("peer %s: %v, want %v", s.Name, s.Err, w)
		}
		t.Logf("%s: %v", s.Name, s.Err)
	}
	if got := l.routes(a, 4); len(got) != 1 {
		t.Errorf("another program's routes: %v", got)
	}
	l.In(a.ns, "ip route del 10.244.9.0/24")
	l.becomes(a, "unreachable 10.244.1.0/24", "10.244.2.0/24 via 192.0.2.2", "10.244.9.0/24 via 192.0.2.9")
	// A node becomes a neighbour when this host gets an address in its subnet.
	l.In(a.ns, "ip addr add 203.0.113.1/24 dev uplink")
	l.becomes(a, "unreachable 10.244.1.0/24", "10.244.2.0/24 via 192.0.2.2", "10.244.9.0/24 via 192.0.2.9", "10.244.7.0/24 via 203.0.113.7")
}

var errAny = errors.New("any")
