package services

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/testnet"
)

// load puts ports into the node's kernel.
func (w *world) load(ports ...Port) (*table, *state) {
	w.t.Helper()
	s := newState()
	for i, p := range ports {
		s.set(p.ID, int64(i), []Port{p})
	}
	tb := newTable(w.Node, testnet.LinkGroup)
	w.t.Cleanup(tb.close)
	testnet.Must(w.t, tb.replace(s.whole()))
	return tb, s
}

func TestClusterIP(t *testing.T) {
	w := newWorld(t)
	client, server := w.Pod(), w.Pod()
	w.Serve(server.NS, "server", 8080)
	var ports []Port
	for _, v := range []struct{ ip string }{{"10.96.0.10"}, {"fd00:96::10"}} {
		for _, proto := range []Protocol{6, 17} {
			ip := netip.MustParseAddr(v.ip)
			ports = append(ports, Port{
				ID: v.ip + proto.String(), Protocol: proto, Some: true,
				Frontend: []Frontend{{Kind: ClusterIP, Addr: ip, Port: 80}},
				Cluster:  []netip.AddrPort{netip.AddrPortFrom(server.Addr(ip), 8080)},
				Near:     []netip.Addr{server.Addr(ip)},
			})
		}
	}
	tb, s := w.load(ports...)
	content, _ := s.all()
	if !tb.same(content) {
		t.Error("the table is not seen as it was put")
	}
	for _, network := range []string{"tcp", "udp"} {
		for _, ip := range []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::10")} {
			out := testnet.NodeIP4
			if ip.Is6() {
				out = testnet.NodeIP6
			}
			to := netip.AddrPortFrom(ip, 80)
			for _, c := range []struct {
				what string
				from *linuxns.NS
				to   netip.AddrPort
				want string
			}{
				{"pod", client.NS, to, "server from " + client.Addr(ip).String()},
				{"itself", server.NS, to, "server from " + out.String()},
				{"node", w.Node, to, "server from " + out.String()},
				{"outside", w.Out, to, "server from " + out.String()},
				{"pod, unused port", client.NS, netip.AddrPortFrom(ip, 81), "refused"},
				{"node, unused port", w.Node, netip.AddrPortFrom(ip, 81), "refused"},
			} {
				if got := testnet.OutcomeOnce(c.from, network, c.to, c.want); got != c.want {
					t.Errorf("%s, %s %s: %s, want %s", c.what, network, to, got, c.want)
				}
			}
		}
	}
	if t.Failed() {
		t.Log(w.Ruleset())
	}
}

// TestResetConnectionIsForgotten: the client's next connection from a port whose last one was
// reset chooses among the endpoints that there are now.
func TestResetConnectionIsForgotten(t *testing.T) {
	w := newWorld(t)
	client, one, two := w.Pod(), w.Pod(), w.Pod()
	w.Serve(two.NS, "two", 8080)
	for _, v := range []string{"10.96.0.10", "fd00:96::10"} {
		ip := netip.MustParseAddr(v)
		to := netip.AddrPortFrom(ip, 80)
		port := Port{
			ID: v, Protocol: unix.IPPROTO_TCP, Some: true, Frontend: []Frontend{{Kind: ClusterIP, Addr: ip, Port: 80}},
			Cluster: []netip.AddrPort{netip.AddrPortFrom(one.Addr(ip), 8080)},
		}
		for _, affinity := range []time.Duration{0, time.Hour} {
			port.Affinity = affinity
			w.load(port)
			next := resets(t, one.NS, netip.AddrPortFrom(one.Addr(ip), 8080))
			from := connect(t, client.NS, nil, to, true)
			next()
			moved := port
			moved.Cluster = []netip.AddrPort{netip.AddrPortFrom(two.Addr(ip), 8080)}
			w.load(moved)
			connect(t, client.NS, from, to, false)
		}
	}
	if t.Failed() {
		t.Log(w.Ruleset())
	}
}

// TestNodeIsRefusedByItself: who asks a node port without endpoints on the node itself is told that
// it is refused, not that sending is forbidden (EPERM).
func TestNodeIsRefusedByItself(t *testing.T) {
	w := newWorld(t)
	for _, proto := range []Protocol{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		for _, node := range []netip.Addr{testnet.NodeIP4, testnet.NodeIP6} {
			every := netip.IPv4Unspecified()
			if node.Is6() {
				every = netip.IPv6Unspecified()
			}
			w.load(Port{ID: "nobody", Protocol: proto, Frontend: []Frontend{{Kind: NodePort, Addr: every, Port: 30080}}})
			if _, err := testnet.AskOnce(w.Node, proto.String(), netip.AddrPortFrom(node, 30080)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s to %s: %v", proto, node, err)
			}
		}
	}
	if t.Failed() {
		t.Log(w.Ruleset())
	}
}

// resets listens at an address and resets the one connection that comes; the returned
// function waits for that.
func resets(t *testing.T, ns *linuxns.NS, at netip.AddrPort) (wait func()) {
	t.Helper()
	var l net.Listener
	testnet.Must(t, ns.Do(func() (err error) {
		l, err = net.Listen("tcp", at.String())
		return err
	}))
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			// With data that nobody has read, close sends a reset and no FIN.
			_, err = io.ReadFull(c, make([]byte, 1))
			err = errors.Join(err, c.(*net.TCPConn).SetLinger(0), c.Close())
		}
		done <- errors.Join(err, l.Close())
	}()
	return func() { testnet.Must(t, <-done) }
}

// connect asks from one client port (nil: any) and returns that port; reset says how the
// connection has to end, else "two" has to answer.
func connect(t *testing.T, ns *linuxns.NS, from net.Addr, to netip.AddrPort, reset bool) net.Addr {
	t.Helper()
	var c net.Conn
	testnet.Must(t, ns.Do(func() (err error) {
		c, err = (&net.Dialer{LocalAddr: from, Timeout: 20 * time.Second}).Dial("tcp", to.String())
		return err
	}))
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if reset {
		_, _ = c.Write([]byte("?"))
	}
	answer, err := io.ReadAll(c)
	if got := errors.Is(err, unix.ECONNRESET); got != reset || !reset && !strings.HasPrefix(string(answer), "two ") {
		t.Errorf("%s from %s: %q (%v)", to, c.LocalAddr(), answer, err)
	}
	return c.LocalAddr()
}

// other is an address of an endpoint on another node: the outside host answers there.
func (w *world) other() (v4, v6 netip.Addr) {
	w.t.Helper()
	w.In(w.Out, "ip addr add 10.244.9.9/32 dev lo", "ip addr add fd00:244:9::9/128 dev lo nodad")
	w.In(w.Node, "ip route add 10.244.9.0/24 via 198.51.100.2", "ip -6 route add fd00:244:9::/64 via 2001:db8:1::2")
	return netip.MustParseAddr("10.244.9.9"), netip.MustParseAddr("fd00:244:9::9")
}

// TestPolicies states for each sort of frontend and client who answers, and whom it sees.
func TestPolicies(t *testing.T) {
	w := newWorld(t)
	client, server := w.Pod(), w.Pod()
	far4, far6 := w.other()
	w.Serve(server.NS, "here", 8080)
	w.Serve(w.Out, "far", 8080)
	for _, ipv6 := range []bool{false, true} {
		cluster, external, node, out := "10.96.0.10", "203.0.113.10", testnet.NodeIP4.String(), testnet.OutIP4.String()
		here, far, self := server.V4, far4, client.V4.String()
		every := netip.IPv4Unspecified()
		if ipv6 {
			cluster, external, node, out = "fd00:96::10", "fd00:ffff::10", testnet.NodeIP6.String(), testnet.OutIP6.String()
			here, far, self, every = server.V6, far6, client.V6.String(), netip.IPv6Unspecified()
		}
		at := func(ip string, port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(ip), port) }
		base := func(change func(*Port)) Port {
			p := Port{
				Protocol: 6, Some: true, Cluster: []netip.AddrPort{netip.AddrPortFrom(far, 8080)}, Near: []netip.Addr{here},
				Frontend: []Frontend{
					{Kind: ClusterIP, Addr: netip.MustParseAddr(cluster), Port: 80},
					{Kind: External, Addr: netip.MustParseAddr(external), Port: 80},
					{Kind: NodePort, Addr: every, Port: 30080},
				},
			}
			change(&p)
			return p
		}
		external0 := func(local bool, p *Port) { p.Frontend[1].Local, p.Frontend[2].Local = local, local }
		for _, c := range []struct {
			name                  string
			change                func(*Port)
			pod, host, outside    string // to the cluster IP
			podX, hostX, outsideX string // to the external address
			podN, outsideN        string // to the node port
		}{
			{
				"policy Cluster", func(*Port) {},
				"far from " + self, "far from " + node, "far from " + node,
				"far from " + node, "far from " + node, "far from " + node,
				"far from " + node, "far from " + node,
			},
			{
				"external policy Local", func(p *Port) { external0(true, p); p.Here = []netip.AddrPort{netip.AddrPortFrom(here, 8080)} },
				"far from " + self, "far from " + node, "far from " + node,
				"far from " + self, "far from " + node, "here from " + out,
				"far from " + self, "here from " + out,
			},
			{
				"external policy Local, nobody here", func(p *Port) { external0(true, p) },
				"far from " + self, "far from " + node, "far from " + node,
				"far from " + self, "far from " + node, "silence",
				"far from " + self, "silence",
			},
			{
				"internal policy Local", func(p *Port) { p.Frontend[0].Local, p.Here = true, []netip.AddrPort{netip.AddrPortFrom(here, 8080)} },
				"here from " + self, "here from " + node, "here from " + node,
				"far from " + node, "far from " + node, "far from " + node,
				"far from " + node, "far from " + node,
			},
			{
				"internal policy Local, nobody here", func(p *Port) { p.Frontend[0].Local = true },
				"silence", "silence", "silence",
				"far from " + node, "far from " + node, "far from " + node,
				"far from " + node, "far from " + node,
			},
			{
				"nobody at all", func(p *Port) { p.Cluster, p.Some = nil, false },
				"refused", "refused", "refused", "refused", "refused", "refused", "refused", "refused",
			},
			{
				"source ranges let the client in", func(p *Port) {
					p.Frontend[1].Limited, p.Frontend[1].Sources = true, []netip.Prefix{netip.MustParsePrefix(out + "/32")}
					if ipv6 {
						p.Frontend[1].Sources[0] = netip.MustParsePrefix(out + "/120")
					}
				},
				"far from " + self, "far from " + node, "far from " + node,
				"silence", "silence", "far from " + node,
				"far from " + node, "far from " + node,
			},
			{
				"source ranges let nobody in", func(p *Port) { p.Frontend[1].Limited = true },
				"far from " + self, "far from " + node, "far from " + node,
				"silence", "silence", "silence",
				"far from " + node, "far from " + node,
			},
		} {
			for _, affinity := range []time.Duration{0, time.Hour} {
				port := base(c.change)
				port.ID, port.Affinity = c.name, affinity
				w.load(port)
				askAll(t, fmt.Sprintf("%s, affinity %s, IPv6 %t", c.name, affinity, ipv6), []question{
					{"pod to cluster IP", client.NS, at(cluster, 80), c.pod},
					{"host to cluster IP", w.Node, at(cluster, 80), c.host},
					{"outside to cluster IP", w.Out, at(cluster, 80), c.outside},
					{"pod to external", client.NS, at(external, 80), c.podX},
					{"host to external", w.Node, at(external, 80), c.hostX},
					{"outside to external", w.Out, at(external, 80), c.outsideX},
					{"pod to node port", client.NS, at(node, 30080), c.podN},
					{"outside to node port", w.Out, at(node, 30080), c.outsideN},
				})
			}
		}
	}
	if t.Failed() {
		t.Log(w.Ruleset())
	}
}

// question is one TCP connection and what has to come of it.
type question struct {
	what string
	from *linuxns.NS
	to   netip.AddrPort
	want string
}

// askAll asks all at once: silence takes its time.
func askAll(t *testing.T, name string, questions []question) {
	t.Helper()
	var wg sync.WaitGroup
	for _, q := range questions {
		wg.Go(func() {
			if got := testnet.OutcomeOnce(q.from, "tcp", q.to, q.want); got != q.want {
				t.Errorf("%s: %s: %s, want %s", name, q.what, got, q.want)
			}
		})
	}
	wg.Wait()
}
