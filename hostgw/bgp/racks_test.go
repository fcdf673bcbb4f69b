package bgp

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// racks are two racks with two top-of-rack routers each (FRR) and a node on both; the
// routers' routes are reflected by a router between the racks (BIRD), which forwards as well.
type racks struct {
	l     *lab
	spine *host
	tors  map[string]*host
	kill  map[string]func() // a router's daemons
	nodes [2]*host
}

const rackTor = `
router bgp 65000
 bgp router-id 10.0.K.2
 no bgp ebgp-requires-policy
 timers bgp 1 3
 neighbor 10.0.K.1 remote-as 65000
 neighbor nodes peer-group
 neighbor nodes remote-as external
 bgp listen range 172.16.K.0/24 peer-group nodes
 address-family ipv4 unicast
  neighbor 10.0.K.1 next-hop-self
 exit-address-family
`

func newRacks(t *testing.T) *racks {
	l := newLab(t)
	r := &racks{l: l, spine: l.host("spine"), tors: map[string]*host{}, kill: map[string]func(){}}
	r.nodes = [2]*host{l.host("n1"), l.host("n2")}
	var bird strings.Builder
	for k, name := range []string{"t1a", "t1b", "t2a", "t2b"} {
		tor, n := l.host(name), r.nodes[k/2]
		r.spine.join(tor, fmt.Sprintf("10.0.%d.1/30", k), fmt.Sprintf("10.0.%d.2/30", k))
		tor.join(n, fmt.Sprintf("172.16.%d.1/24", k), fmt.Sprintf("172.16.%d.2/24", k))
		tor.run(fmt.Sprintf("ip route add 10.0.0.0/16 via 10.0.%d.1", k))
		r.tors[name], r.kill[name] = tor, tor.frr(strings.ReplaceAll(rackTor, "K", fmt.Sprint(k)))
		fmt.Fprintf(&bird, `protocol bgp %s { local 10.0.%d.1 as 65000; neighbor 10.0.%d.2 as 65000; direct; check link yes; rr client;
  connect delay time 1; connect retry time 1; error wait time 1,2; hold time 3; keepalive time 1; ipv4 { import all; export where source = RTS_BGP; }; }
`, name, k, k)
	}
	r.spine.bird("10.0.0.1", bird.String())
	for i, n := range r.nodes {
		n.run(fmt.Sprintf("ip addr add 10.244.%d.1/32 dev lo", i+1))
		self, other := rackNode(i), rackNode(1-i)
		n.speaker(order{Self: self, Others: []Node{other}, Config: fmt.Sprintf(`asn: 64512
peers:
- {name: a, address: 172.16.%d.1, asn: 65000, holdTime: 3s, connectRetry: 1s}
- {name: b, address: 172.16.%d.1, asn: 65000, holdTime: 3s, connectRetry: 1s}
`, 2*i, 2*i+1)})
	}
	return r
}

func rackNode(i int) Node {
	n := node(fmt.Sprintf("n%d", i+1), fmt.Sprintf("10.9.0.%d", i+1), fmt.Sprintf("10.244.%d.0/24", i+1))
	n.Annotations[AnnotationASN] = fmt.Sprint(64601 + i)
	return n
}

// settle waits until the first node has the second's pods by these routers, and the router
// between the racks the second node's by those.
func (r *racks) settle(node, spine string) {
	r.l.t.Helper()
	r.nodes[0].becomes(RouteProtocol, "10.244.2.0/24 via "+node)
	eventually(r.l.t, "the spine reaches rack two by "+spine, func() error {
		for _, route := range r.spine.routes(12) {
			if route == "10.244.2.0/24 via "+spine {
				return nil
			}
		}
		return fmt.Errorf("it has %q", r.spine.routes(12))
	})
}

// TestRacks fails links and routers, and prints for how long packets were lost. Each
// address pair has several flows, so that both ways of a rack carry some.
func TestRacks(t *testing.T) {
	r := newRacks(t)
	both, bothSpine := "172.16.0.1 172.16.1.1", "10.0.2.2 10.0.3.2"
	r.settle(both, bothSpine)
	r.nodes[1].becomes(RouteProtocol, "10.244.1.0/24 via 172.16.2.1 172.16.3.1")
	var flows []*flow
	for range 6 {
		flows = append(flows, r.nodes[0].flow("10.244.1.1", r.nodes[1], "10.244.2.1"), r.nodes[1].flow("10.244.2.1", r.nodes[0], "10.244.1.1"))
	}
	longest := func() (gap time.Duration) {
		for _, f := range flows {
			f.flows(t)
			gap = max(gap, f.reset())
		}
		return gap.Round(time.Millisecond)
	}
	t.Logf("nothing fails: %s at most between two answers", longest())
	fail := func(what string, do func(), node, spine string) {
		t.Helper()
		longest()
		do()
		r.settle(node, spine)
		t.Logf("%s: %s without an answer", what, longest())
	}
	t1a, t2a := r.tors["t1a"], r.tors["t2a"]
	fail("a node's link fails", func() { t1a.run("ip link set dev n1 down") }, "172.16.1.1", bothSpine)
	fail("it is back", func() { t1a.run("ip link set dev n1 up") }, both, bothSpine)
	fail("the other node's link fails", func() { t2a.run("ip link set dev n2 down") }, both, "10.0.3.2")
	fail("it is back", func() { t2a.run("ip link set dev n2 up") }, both, bothSpine)
	fail("a top-of-rack router loses its power", func() {
		t2a.run("ip link set dev n2 down", "ip link set dev spine down")
		r.kill["t2a"]()
	}, both, "10.0.3.2")
	fail("the other rack's too", func() {
		t1a.run("ip link set dev n1 down", "ip link set dev spine down")
		r.kill["t1a"]()
	}, "172.16.1.1", "10.0.3.2")
	for _, f := range flows {
		f.end()
	}
}
