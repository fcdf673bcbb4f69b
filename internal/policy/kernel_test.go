package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/testnet"
)

// arena is a node with pods and another node, all of them heard.
type arena struct {
	*testnet.World
	hosts []host
	id    uint16
}

type host struct {
	ns     *linuxns.NS
	v4, v6 netip.Addr
	tap    *testnet.Tap
}

func newArena(t *testing.T, pods int) *arena {
	a := &arena{World: testnet.New(t)}
	a.In(a.Node, "sysctl -qw net.netfilter.nf_conntrack_checksum=0")
	for range pods {
		p := a.Pod()
		a.hosts = append(a.hosts, host{ns: p.NS, v4: p.V4, v6: p.V6})
	}
	a.hosts = append(a.hosts, host{ns: a.Out, v4: testnet.OutIP4, v6: testnet.OutIP6})
	for i := range a.hosts {
		tap, err := testnet.Listen(a.hosts[i].ns)
		testnet.Must(t, err)
		t.Cleanup(tap.Close)
		a.hosts[i].tap = tap
	}
	return a
}

func (a *arena) next() uint16 {
	if a.id++; a.id >= 60000 {
		a.id = 1
	}
	return a.id
}

// passed sends all packets and says which arrived, in their order. What is sent after them
// from the node, twice, has to pass the same queues.
func (a *arena) passed(packets []packet) ([]bool, error) {
	out := make([]bool, len(packets))
	sent := make([]testnet.Packet, len(packets))
	for i, p := range packets {
		from := a.host(p.from)
		sent[i] = testnet.Packet{From: p.from, To: p.to, Protocol: uint8(p.protocol), Port: p.port, ID: a.next()}
		if err := testnet.Inject(from.ns, sent[i]); err != nil {
			return nil, err
		}
	}
	for range 2 {
		for _, h := range a.hosts {
			fence := testnet.Packet{From: testnet.NodeIP4, To: h.v4, Protocol: 17, Port: 9, ID: 60000}
			if err := testnet.Inject(a.Node, fence); err != nil {
				return nil, err
			}
			seen, err := h.tap.Until(fence)
			if err != nil {
				return nil, fmt.Errorf("node to %s: %w", h.v4, err)
			}
			for i, p := range sent {
				out[i] = out[i] || seen[p]
			}
		}
	}
	return out, nil
}

func (a *arena) host(addr netip.Addr) host {
	for _, h := range a.hosts {
		if h.v4 == addr || h.v6 == addr {
			return h
		}
	}
	panic("no host has " + addr.String())
}

// TestKernelAgrees: whatever the policies, the kernel lets pass exactly what the
// documentation says, also after any change of them.
func TestKernelAgrees(t *testing.T) {
	const pods = 4
	a := newArena(t, pods)
	rapid.Check(t, func(t *rapid.T) {
		tb := newTable(a.Node.FD(), testnet.LinkGroup)
		defer tb.close()
		e, g := newEngine(testNode), newWorldGen()
		for _, name := range []string{"x", "y"} {
			g.namespaces[name] = anyLabels(t)
		}
		for i := range pods + 1 {
			p := a.anyPod(t, i)
			g.pods[p.UID] = p
		}
		for range rapid.IntRange(1, 3).Draw(t, "policies") {
			p := anyPolicy(t, anyOf(t, "namespace", "x", "y"), anyOf(t, "policy", "p", "q"))
			g.policies[p.Namespace+"/"+p.Name] = p
		}
		g.load(t, e)
		e.take()
		if err := tb.replace(e.content); err != nil {
			t.Fatal(err)
		}
		a.compare(t, g, e)
		for range rapid.IntRange(0, 2).Draw(t, "changes") {
			a.change(t, g, e)
			if d := e.take(); !d.empty() {
				if err := tb.change(d); err != nil {
					t.Fatal(err)
				}
			}
			a.compare(t, g, e)
		}
		if !tb.same(e.content) {
			t.Fatal("the table is not seen as it was put")
		}
	})
}

// anyPod draws the pod that has the i-th host's addresses; the last is the other node's own.
func (a *arena) anyPod(t *rapid.T, i int) *Pod {
	p := anyPod(t, fmt.Sprint("pod", i))
	h := a.hosts[i]
	p.IPs = []netip.Addr{h.v4, h.v6}
	if p.HostNetwork = i == len(a.hosts)-1; p.HostNetwork {
		p.Node, p.Admitted = "node-b", false
	}
	return p
}

func (a *arena) change(t *rapid.T, g *worldGen, e *engine) {
	switch rapid.IntRange(0, 2).Draw(t, "change") {
	case 0:
		p := a.anyPod(t, rapid.IntRange(0, len(a.hosts)-1).Draw(t, "pod"))
		g.pods[p.UID] = p
		e.setPod(p.UID, p)
	case 1:
		name := anyOf(t, "namespace", "x", "y")
		g.namespaces[name] = anyLabels(t)
		e.setNamespace(name, g.namespaces[name])
	default:
		p := anyPolicy(t, anyOf(t, "namespace", "x", "y"), anyOf(t, "policy", "p", "q"))
		key := p.Namespace + "/" + p.Name
		g.policies[key] = p
		e.setPolicy(key, compiled(t, p))
	}
}

// compare sends packets between all hosts.
func (a *arena) compare(t *rapid.T, g *worldGen, e *engine) {
	var packets []packet
	for _, from := range a.hosts {
		for _, to := range a.hosts {
			if from.ns == to.ns {
				continue
			}
			p := packet{from: from.v4, to: to.v4, protocol: anyOf(t, "protocol", Protocol(6), 17, 132), port: anyOf(t, "port", uint16(79), 80, 81)}
			if rapid.Bool().Draw(t, "ipv6") {
				p.from, p.to = from.v6, to.v6
			}
			packets = append(packets, p)
		}
	}
	passed, err := a.passed(packets)
	if err != nil {
		t.Fatal(err)
	}
	var wrong strings.Builder // rapid tells the last error alone of what it cannot reproduce
	for i, p := range packets {
		want := truth{g}.allows(p)
		if passed[i] != want {
			fmt.Fprintf(&wrong, "%v passed: %t, want %t\n", p, passed[i], want)
		}
		if got := e.content.allows(p); got != want {
			fmt.Fprintf(&wrong, "%v is allowed by the content: %t, want %t\n", p, got, want)
		}
	}
	if wrong.Len() > 0 {
		t.Fatalf("%sby these rules:\n%s", wrong.String(), e.content)
	}
}
