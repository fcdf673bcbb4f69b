package bgp

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// rival is one BIRD behind a link of its own to the node, in the AS 65000+n. Links are
// 192.0.2.n/24's: 10.1.n.1 is BIRD's end, 10.1.n.2 the node's.
func (h *host) rival(n int, name, options string) *host {
	h.l.t.Helper()
	r := h.l.host(name)
	r.join(h, fmt.Sprintf("10.1.%d.1/24", n), fmt.Sprintf("10.1.%d.2/24", n))
	r.bird(fmt.Sprintf("10.1.%d.1", n), options)
	return r
}

// TestReflectorSettings changes what a running route reflector does to its clients: BIRD
// has to see each change in the routes that it gets.
func TestReflectorSettings(t *testing.T) {
	l := newLab(t)
	a := l.host("a")
	var birds []*host
	for n := 1; n <= 2; n++ {
		birds = append(birds, a.rival(n, fmt.Sprintf("r%d", n), fmt.Sprintf(`
protocol static s4 { ipv4; route 10.244.%[1]d0.0/24 blackhole; }
protocol bgp node { local 10.1.%[1]d.1 as 64512; neighbor 10.1.%[1]d.2 as 64512; connect delay time 1; connect retry time 1; error wait time 1,1;
  ipv4 { import all; export where source = RTS_STATIC; }; }`, n)))
	}
	const cfg = "asn: 64512\npeers:\n- {name: r1, address: 10.1.1.1, asn: 64512, families: [IPv4], connectRetry: 1s%[1]s}\n" +
		"- {name: r2, address: 10.1.2.1, asn: 64512, families: [IPv4], connectRetry: 1s%[1]s}\n"
	o := order{Self: node("a", "10.1.1.2", "10.244.1.0/24")}
	o.Config = fmt.Sprintf(cfg, "")
	s := a.speaker(o)
	s.up(2)
	learn := func(with string, wants ...string) {
		t.Helper()
		o.Config = fmt.Sprintf(cfg, with)
		s.tell(o)
		birds[0].birdShows("show route 10.244.20.0/24 all", wants...)
		birds[1].birdShows("show route 10.244.10.0/24 all", wants...)
	}
	birds[0].birdShows("show route 10.244.1.0/24 all", "BGP.local_pref")
	learn(", routeReflectorClient: true", "BGP.originator_id", "BGP.cluster_list: 10.1.1.2")
	learn(", routeReflectorClient: true, clusterID: 10.9.9.9", "BGP.cluster_list: 10.9.9.9")
	learn("", "Network not found")
	birds[0].birdShows("show route 10.244.1.0/24 all", "BGP.local_pref") // ours is still told
}

// TestPeerOptions: one BIRD for each option, all at one node; what the option does is seen by BIRD.
func TestPeerOptions(t *testing.T) {
	l := newLab(t)
	a := l.host("a")
	const channel = "connect delay time 5; connect retry time 1; error wait time 1,1; ipv4 { import all; export where source = RTS_STATIC; }; }"
	passive := a.rival(1, "passive", "protocol bgp node { local 10.1.1.1 as 65001; neighbor 10.1.1.2 as 64512; "+channel)
	passive.run("nft add table t", "nft add chain t in { type filter hook input priority 0 ; }", "nft add rule t in tcp dport 179 tcp flags syn / syn,ack counter")
	port := a.rival(2, "port", "protocol bgp node { local 10.1.2.1 port 1790 as 65002; neighbor 10.1.2.2 as 64512; passive; "+channel)
	carried := a.rival(3, "carried", "protocol bgp node { local 10.1.3.1 as 65003; neighbor 10.1.3.2 as 64512; passive; "+channel)
	internal := a.rival(4, "internal", "protocol bgp node { local 10.1.4.1 as 64512; neighbor 10.1.4.2 as 64512; passive; "+channel)
	gtsm := a.rival(5, "gtsm", "protocol bgp node { local 10.1.5.1 as 65005; neighbor 10.1.5.2 as 64512; passive; ttl security on; "+channel)
	router, far := l.host("router"), l.host("far")
	router.join(a, "10.1.6.1/24", "10.1.6.2/24")
	router.join(far, "10.1.7.1/24", "10.1.7.2/24")
	far.run("ip route add 10.1.6.0/24 via 10.1.7.1")
	a.run("ip route add 10.1.7.0/24 via 10.1.6.1")
	far.bird("10.1.7.2", "protocol bgp node { local 10.1.7.2 as 65006; neighbor 10.1.6.2 as 64512; multihop 2; passive; "+channel)

	const cfg = `asn: 64512
advertise: {communities: ["64512:1"]}
peers:
- {name: passive, address: 10.1.1.1, asn: 65001, passive: true, connectRetry: 1s}
- {name: port, address: 10.1.2.1, asn: 65002, port: 1790, connectRetry: 1s}
- {name: carried, address: 10.1.3.1, asn: 65003, connectRetry: 1s, communities: ["64512:2", "64512:3:4", no-export], holdTime: 12s, keepalive: 3s}
- {name: internal, address: 10.1.4.1, asn: 64512, connectRetry: 1s, localPref: 77, communities: ["64512:9"]}
- {name: gtsm, address: 10.1.5.1, asn: 65005, connectRetry: 1s, ttlSecurity: true}
- {name: far, address: 10.1.7.2, asn: 65006, connectRetry: 1s}
`
	o := order{Self: node("a", "10.1.1.2", "10.244.1.0/24"), Config: cfg}
	s := a.speaker(o)
	const route, session = "show route 10.244.1.0/24 all", "show protocols all node"
	passive.birdShows(route, "BGP.as_path: 64512", "(64512,1)")
	if rules := passive.run("nft list chain t in"); !strings.Contains(rules, "packets 0 ") {
		t.Errorf("a passive session connects:\n%s", rules)
	}
	port.birdShows(route, "BGP.as_path: 64512", "(64512,1)")
	carried.birdShows(route, "(64512,1)", "(64512,2)", "(65535,65281)", "(64512, 3, 4)")
	carried.birdShows(session, "/12")
	internal.birdShows(route, "BGP.local_pref: 77", "(64512,9)")
	gtsm.birdShows(session, "Established")
	if out := carried.birdc(route) + port.birdc(route); strings.Contains(out, "(64512,9)") {
		t.Errorf("a community for one peer reaches others:\n%s", out)
	}

	eventually(t, "the router drops what may go one hop only", func() error {
		if out := router.run("cat /proc/net/snmp"); timeExceeded(out) == "0" {
			return errors.New(out)
		}
		return nil
	})
	if out := far.birdc(session); strings.Contains(out, "Established") {
		t.Errorf("a session over two hops without multihop:\n%s", out)
	}
	o.Config = strings.NewReplacer("asn: 65006", "asn: 65006, multihop: 2", "holdTime: 12s", "holdTime: 21s").Replace(cfg)
	s.tell(o)
	far.birdShows(route, "BGP.as_path: 64512")
	if out := carried.birdc(session); !strings.Contains(out, "/12") {
		t.Errorf("another hold time resets the session:\n%s", out)
	}
	carried.birdc("restart node")
	carried.birdShows(session, "/21")
}

// timeExceeded is how many packets a host dropped because they had come too far.
func timeExceeded(snmp string) string {
	var names []string
	for line := range strings.Lines(snmp) {
		fields := strings.Fields(line)
		if fields[0] != "Icmp:" {
			continue
		}
		for i, name := range names {
			if name == "OutTimeExcds" {
				return fields[i]
			}
		}
		names = fields
	}
	return ""
}

// TestPrefixLimit: a peer that tells too much is shut out, and let in when the limit is
// raised, or again and again.
func TestPrefixLimit(t *testing.T) {
	l := newLab(t)
	a := l.host("a")
	var routes strings.Builder
	for i := range 20 {
		fmt.Fprintf(&routes, "route 10.244.%d.0/24 blackhole; ", 100+i)
	}
	tor := a.rival(1, "tor", "protocol static few { ipv4; route 10.244.99.0/24 blackhole; }\nprotocol static many { ipv4; "+routes.String()+`}
protocol bgp node { local 10.1.1.1 as 65001; neighbor 10.1.1.2 as 64512; direct; connect delay time 1; connect retry time 1; error wait time 1,1;
  ipv4 { import all; export where source = RTS_STATIC; }; }`)
	tor.birdShows("disable many", "many: disabled")
	const cfg = "asn: 64512\nimport: {prefixes: [10.244.0.0/16], maxPrefixes: %d}\npeers:\n- {name: tor, address: 10.1.1.1, asn: 65001, families: [IPv4], connectRetry: 1s}\n"
	o := order{Self: node("a", "10.1.1.2", "10.244.1.0/24"), Config: fmt.Sprintf(cfg, 10)}
	t.Setenv("BGP_SPEAKER_REOPEN", "3s")
	s := a.speaker(o)
	few := "10.244.99.0/24 via 10.1.1.1"
	a.becomes(RouteProtocol, few)
	shut := func() {
		t.Helper()
		eventually(t, "the session is closed by its limit", func() error {
			for _, p := range s.status().Peers {
				if p.State == "prefix-limit" {
					return nil
				}
			}
			return fmt.Errorf("%+v", s.status().Peers)
		})
		a.becomes(RouteProtocol)
	}
	tor.birdc("enable many")
	shut()
	tor.birdc("disable many")
	a.becomes(RouteProtocol, few) // it was tried again
	tor.birdc("enable many")
	shut()
	o.Config = fmt.Sprintf(cfg, 100)
	s.tell(o)
	all := []string{few}
	for i := range 20 {
		all = append(all, fmt.Sprintf("10.244.%d.0/24 via 10.1.1.1", 100+i))
	}
	a.becomes(RouteProtocol, all...)
}
