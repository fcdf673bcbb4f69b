package bgp

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// restartLab is a node between two peers, BIRD and FRR, that hold its routes in their kernels.
func restartLab(t *testing.T, extra string) (a *host, peers []*host, s *speaker) {
	l := newLab(t)
	bird, frr := l.host("bird"), l.host("frr")
	a = l.host("a")
	bird.join(a, "192.0.2.254/24 2001:db8::fe/64", "192.0.2.1/24 2001:db8::1/64")
	frr.join(a, "198.51.100.254/24", "198.51.100.1/24")
	a.run("ip addr add 10.244.1.1/32 dev lo")
	bird.run("ip addr add 10.244.8.1/32 dev lo")
	frr.run("ip addr add 10.244.9.1/32 dev lo")
	bird.bird("192.0.2.254", `
protocol static s4 { ipv4; route 10.244.8.0/24 blackhole; }
protocol bgp node { local 192.0.2.254 as 65001; neighbor 192.0.2.1 as 64512; graceful restart on;
  ipv4 { import all; export where source = RTS_STATIC; }; ipv6 { import all; export none; }; }`)
	frr.frr(`
router bgp 65002
 bgp router-id 198.51.100.254
 no bgp ebgp-requires-policy
 no bgp network import-check
 bgp graceful-restart
 neighbor 198.51.100.1 remote-as 64512
 address-family ipv4 unicast
  network 10.244.9.0/24
 exit-address-family
`)
	s = a.speaker(order{
		Self: node("a", "192.0.2.1 2001:db8::1", podsA),
		Config: "asn: 64512\nimport: {prefixes: [10.244.0.0/16]}\n" + extra + `
peers:
- {name: bird, address: 192.0.2.254, asn: 65001, connectRetry: 1s}
- {name: frr, address: 198.51.100.254, asn: 65002, connectRetry: 1s, families: [IPv4]}
`,
	})
	bird.becomes(12, "10.244.1.0/24 via 192.0.2.1", "fd00:244:1::/64 via 2001:db8::1")
	frr.becomes(186, "10.244.1.0/24 via 198.51.100.1")
	a.becomes(RouteProtocol, "10.244.8.0/24 via 192.0.2.254", "10.244.9.0/24 via 198.51.100.254")
	return a, []*host{bird, frr}, s
}

// TestKill: the agent is killed and started again; no kernel loses a route meanwhile and no
// packet of a running flow is lost. Then a route that went away meanwhile goes.
func TestKill(t *testing.T) {
	a, peers, s := restartLab(t, "")
	deleted := []func() any{}
	for _, h := range append(peers, a) {
		get := h.watchDeletes()
		deleted = append(deleted, func() any { return fmt.Sprint(h.name, get()) })
	}
	var flows []*flow
	for i, h := range peers {
		flows = append(flows, h.flow(fmt.Sprintf("10.244.%d.1", 8+i), a, "10.244.1.1"))
	}
	flows = append(flows, a.flow("10.244.1.1", peers[0], "10.244.8.1"))
	for _, f := range flows {
		f.flows(t)
	}
	for range 2 {
		s.kill()
		eventually(t, "both peers see that the session is gone", func() error {
			if out := peers[1].vtysh("show bgp summary"); strings.Contains(out, "Established") || !strings.Contains(out, "198.51.100.1") {
				return errors.New(out)
			}
			return nil
		})
		for _, f := range flows {
			f.flows(t)
		}
		s.restart()
		s.up(2)
		eventually(t, "the restart is over", func() error {
			if st := s.status(); st.Restarting {
				return fmt.Errorf("%+v", st)
			}
			return nil
		})
		eventually(t, "both are told again", func() error {
			for _, p := range s.status().Peers {
				if p.Advertised == 0 {
					return fmt.Errorf("%+v", p)
				}
			}
			return nil
		})
		for _, f := range flows {
			f.flows(t)
		}
	}
	peers[0].becomes(12, "10.244.1.0/24 via 192.0.2.1", "fd00:244:1::/64 via 2001:db8::1")
	peers[1].becomes(186, "10.244.1.0/24 via 198.51.100.1")
	for _, get := range deleted {
		if got := fmt.Sprint(get()); !strings.Contains(got, "[]") {
			t.Errorf("routes were deleted: %s", got)
		}
	}
	for i, f := range flows {
		if lost, sent := f.stop(t); lost > 0 {
			t.Errorf("flow %d lost %d of %d packets", i, lost, sent)
		} else {
			t.Logf("flow %d lost none of %d packets over two kills", i, sent)
		}
	}

	t.Run("stale routes go", func(t *testing.T) {
		s.kill()
		peers[1].vtysh("configure terminal", "router bgp 65002", "address-family ipv4 unicast", "no network 10.244.9.0/24")
		a.becomes(RouteProtocol, "10.244.8.0/24 via 192.0.2.254", "10.244.9.0/24 via 198.51.100.254")
		s.restart()
		a.becomes(RouteProtocol, "10.244.8.0/24 via 192.0.2.254")
	})
	t.Run("the host stops", func(t *testing.T) {
		must(t, s.in.Encode(order{Leave: true}))
		peers[0].becomes(12)
		peers[1].becomes(186)
		a.becomes(RouteProtocol, "10.244.8.0/24 via 192.0.2.254") // the kernel's go with the host
	})
}

// TestKillWithout: without graceful restart a kill withdraws; so TestKill can fail.
func TestKillWithout(t *testing.T) {
	_, peers, s := restartLab(t, "restartTime: 0s")
	begin := time.Now()
	s.kill()
	peers[0].becomes(12)
	peers[1].becomes(186)
	t.Logf("withdrawn after %s", time.Since(begin).Round(time.Millisecond))
}
