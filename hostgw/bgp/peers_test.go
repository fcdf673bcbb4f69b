package bgp

import (
	"strings"
	"testing"
)

const (
	podsA = "10.244.1.0/24 fd00:244:1::/64"
	podsB = "10.244.2.0/24 fd00:244:2::/64"
)

// TestBird: one eBGP session over IPv4 carries both families; what may not be accepted is not.
func TestBird(t *testing.T) {
	l := newLab(t)
	tor, a := l.host("tor"), l.host("a")
	tor.join(a, "192.0.2.254/24 2001:db8::fe/64", "192.0.2.1/24 2001:db8::1/64")
	a.run("ip addr add 10.244.1.1/32 dev lo", "ip addr add fd00:244:1::1/128 dev lo nodad")
	tor.run("ip addr add 10.244.9.1/32 dev lo", "ip addr add fd00:244:9::1/128 dev lo nodad")
	tor.bird("192.0.2.254", `
protocol static s4 { ipv4; route 10.244.9.0/24 blackhole; route 0.0.0.0/0 blackhole; route 192.0.2.0/25 blackhole;
  route 192.0.2.1/32 blackhole; route 10.244.1.128/25 blackhole; route 10.250.0.0/16 blackhole; route 198.51.100.7/32 blackhole; }
protocol static s6 { ipv6; route fd00:244:9::/64 blackhole; route ::/0 blackhole; }
protocol bgp node { local 192.0.2.254 as 65001; neighbor 192.0.2.1 as 64512; graceful restart on;
  ipv4 { import all; export where source = RTS_STATIC; }; ipv6 { import all; export where source = RTS_STATIC; next hop address 2001:db8::fe; }; }`)
	s := a.speaker(order{
		Self: node("a", "192.0.2.1 2001:db8::1", podsA), Others: []Node{node("z", "203.0.113.9", "10.244.9.0/24 fd00:244:9::/64")},
		Config: "asn: 64512\nimport: {prefixes: [198.51.100.0/24]}\npeers:\n- {name: tor, address: 192.0.2.254, asn: 65001}\n",
	})
	tor.becomes(0, "10.244.1.0/24 via 192.0.2.1", "fd00:244:1::/64 via 2001:db8::1")
	accepted := []string{"10.244.9.0/24 via 192.0.2.254", "198.51.100.7/32 via 192.0.2.254", "fd00:244:9::/64 via 2001:db8::fe"}
	a.becomes(RouteProtocol, accepted...)
	a.reaches("10.244.1.1", tor, "10.244.9.1")
	a.reaches("fd00:244:1::1", tor, "fd00:244:9::1")
	tor.reaches("10.244.9.1", a, "10.244.1.1")
	for _, r := range s.status().Received {
		t.Logf("%s %v %s", r.Prefix, r.Hops, r.Refused)
		if len(r.Hops) == 0 && r.Refused == "" {
			t.Errorf("%s: neither installed nor refused", r.Prefix)
		}
	}

	t.Run("somebody deletes", func(t *testing.T) {
		a.run("ip route del 10.244.9.0/24", "ip -6 route del fd00:244:9::/64")
		a.becomes(RouteProtocol, accepted...)
	})
	t.Run("link flap", func(t *testing.T) {
		tor.run("ip link set dev a down")
		a.becomes(RouteProtocol)
		tor.run("ip link set dev a up", "ip addr add 2001:db8::fe/64 dev a nodad")
		a.becomes(RouteProtocol, accepted...)
		a.reaches("10.244.1.1", tor, "10.244.9.1")
	})
	t.Run("withdraw", func(t *testing.T) {
		yes, no := true, false
		must(t, s.in.Encode(order{Withdraw: &yes}))
		tor.becomes(0)
		s.restart() // it outlives the agent
		s.up(1)
		tor.becomes(0)
		must(t, s.in.Encode(order{Withdraw: &no}))
		tor.becomes(0, "10.244.1.0/24 via 192.0.2.1", "fd00:244:1::/64 via 2001:db8::1")
	})
	t.Run("no configuration", func(t *testing.T) {
		s.tell(order{})
		tor.becomes(0)
		a.becomes(RouteProtocol)
	})
}

// TestMesh: three nodes, two AS numbers, no router.
func TestMesh(t *testing.T) {
	l := newLab(t)
	lan := l.host("lan")
	lan.run("ip link add br0 type bridge", "ip link set br0 up")
	cidrs := []string{podsA, podsB, "10.244.3.0/24 fd00:244:3::/64"}
	addrs := []string{"192.0.2.1 2001:db8::1", "192.0.2.2 2001:db8::2", "192.0.2.3 2001:db8::3"}
	var nodes []Node
	var hosts []*host
	for i, name := range []string{"a", "b", "c"} {
		h := l.host(name)
		four, six, _ := strings.Cut(addrs[i], " ")
		lan.join(h, "", four+"/24 "+six+"/64")
		lan.run("ip link set dev " + name + " master br0")
		hosts, nodes = append(hosts, h), append(nodes, node(name, addrs[i], cidrs[i]))
	}
	nodes[2].Annotations[AnnotationASN] = "64600" // eBGP to the others
	for i, h := range hosts {
		o := order{Self: nodes[i], Config: "asn: 64512\nmesh: true\n"}
		for j := range nodes {
			if j != i {
				o.Others = append(o.Others, nodes[j])
			}
		}
		h.speaker(o)
	}
	for i, h := range hosts {
		var want []string
		for j := range hosts {
			if j != i {
				a, c := strings.Fields(addrs[j]), strings.Fields(cidrs[j])
				want = append(want, c[0]+" via "+a[0], c[1]+" via "+a[1])
			}
		}
		h.becomes(RouteProtocol, want...)
	}
}
