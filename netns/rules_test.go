package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

func setUp(t testing.TB, m *Manager, uid string, ports ...HostPort) PodAddress {
	t.Helper()
	a, err := m.Setup(context.Background(), PodNetwork{PodUID: uid, Namespace: "default", Name: "pod-" + uid, HostPorts: ports})
	must(t, err)
	return a
}

// TestSpoofedPacketsAreDropped gives a pod a second address, its neighbour's and one of
// the world's, and sends from each to everywhere. Only its own arrives.
func TestSpoofedPacketsAreDropped(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	w.start(m, Config{PodCIDRs: dualStack, Masquerade: true})
	a, b := setUp(t, m, "a"), setUp(t, m, "b")
	evil, victim := w.pod(a.Path), w.pod(b.Path)
	for i, local := range []string{"10.244.1.200", "192.0.2.50", b.IPs[0].String(), nodeIP4.String(), "fd00:244:1::200", "2001:db8:9::9", b.IPs[1].String(), nodeIP6.String()} {
		ip := netip.MustParseAddr(local)
		change := func(do func(netlink.Link, *netlink.Addr) error) {
			must(t, evil.Do(func() error {
				l, err := netlink.LinkByName(podLink)
				if err != nil {
					return err
				}
				return do(l, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(ip, ip.BitLen())), Flags: unix.IFA_F_NODAD})
			}))
		}
		change(netlink.AddrAdd)
		for _, to := range []struct {
			ns *linuxns.NS
			ip netip.Addr
		}{{w.node, []netip.Addr{nodeIP4, nodeIP6}[i/4]}, {w.out, []netip.Addr{outIP4, outIP6}[i/4]}, {victim, b.IPs[i/4]}} {
			if to.ip == ip {
				continue
			}
			got := received(t, to.ns, evil, ip, a.IPs[i/4], to.ip)
			if want := 1; got != want {
				t.Errorf("from %s to %s: %d datagrams arrived, want only the honest one", ip, to.ip, got)
			}
		}
		change(netlink.AddrDel)
	}
}

// received counts what arrives of one datagram from the spoofed address followed by one
// from the honest one: the path is in order, so the honest one ends the wait.
func received(t testing.TB, at, from *linuxns.NS, spoofed, honest, to netip.Addr) int {
	t.Helper()
	var pc net.PacketConn
	must(t, at.Do(func() (err error) {
		pc, err = net.ListenPacket("udp", netip.AddrPortFrom(to, 0).String())
		return err
	}))
	defer pc.Close()
	port := pc.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	for i, src := range []netip.Addr{spoofed, honest} {
		must(t, from.Do(func() error {
			c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, port)))
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte{byte(i)})
			return err
		}))
	}
	must(t, pc.SetReadDeadline(time.Now().Add(patience)))
	for n := 1; ; n++ {
		b := make([]byte, 8)
		if _, _, err := pc.ReadFrom(b); err != nil {
			t.Fatalf("the honest datagram from %s to %s never came: %v", honest, to, err)
		}
		if b[0] == 1 {
			return n
		}
	}
}

func TestPodsCannotReachTheHostsLoopback(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	w.start(m, Config{PodCIDRs: dualStack})
	a := setUp(t, m, "a", HostPort{Protocol: "TCP", HostPort: 80, ContainerPort: 80}) // turns route_localnet on
	w.run(w.node, "sysctl", "-q", "net.ipv4.conf."+linkName("a")+".route_localnet")
	port := serve(t, w.node, "tcp", "127.0.0.1:0")
	pod := w.pod(a.Path)
	must(t, pod.Do(func() error {
		_, err := linuxns.SetSysctl(linuxns.Sysctl{Key: "net.ipv4.conf.all.route_localnet", Value: "1"})
		return err
	}))
	w.run(pod, "ip", "route", "del", "local", "127.0.0.0/8", "dev", "lo", "table", "local")
	w.run(pod, "ip", "route", "del", "local", "127.0.0.1", "dev", "lo", "table", "local")
	w.run(pod, "ip", "route", "add", "127.0.0.0/8", "via", gateway4.String(), "dev", podLink, "onlink", "src", a.IPs[0].String())
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
	if from, err := askFrom(pod, "tcp", &net.TCPAddr{IP: a.IPs[0].AsSlice()}, to, silence); err == nil {
		t.Errorf("the host's loopback answered %s", from)
	}
}

func TestMasquerade(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		name string
		cfg  Config
		want func(a PodAddress) []netip.Addr
	}{
		{"on", Config{Masquerade: true}, func(PodAddress) []netip.Addr { return []netip.Addr{nodeIP4, nodeIP6} }},
		{"off", Config{}, func(a PodAddress) []netip.Addr { return a.IPs }},
		{
			"not to the cluster",
			Config{Masquerade: true, ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/25")}},
			func(a PodAddress) []netip.Addr { return []netip.Addr{a.IPs[0], nodeIP6} },
		},
		{
			"not to overlapping ranges",
			Config{Masquerade: true, NoMasquerade: []netip.Prefix{
				netip.MustParsePrefix("198.51.100.0/30"), netip.MustParsePrefix("198.51.0.0/16"), netip.MustParsePrefix("198.52.0.0/16"),
				netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("ffff::/16"),
			}},
			func(a PodAddress) []netip.Addr { return a.IPs },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := w.manager()
			c.cfg.PodCIDRs = dualStack
			defer w.start(m, c.cfg)()
			a := setUp(t, m, "a")
			_, _ = w.try(w.out, "ip", "route", "add", "10.244.1.0/24", "via", nodeIP4.String())
			_, _ = w.try(w.out, "ip", "route", "add", "fd00:244:1::/64", "via", nodeIP6.String())
			for i, out := range []netip.Addr{outIP4, outIP6} {
				for _, network := range []string{"tcp", "udp"} {
					port := serve(t, w.out, network, netip.AddrPortFrom(out, 0).String())
					seen(t, c.name, w.pod(a.Path), network, netip.AddrPortFrom(out, port), c.want(a)[i])
				}
			}
			if healed, err := m.rules.check(); healed || err != nil {
				t.Errorf("the table is not as wanted right after it was made (%v)", err)
			}
			w.run(w.node, "nft", "list", "ruleset")
		})
	}
}

func TestHostPorts(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	w.start(m, Config{PodCIDRs: dualStack, Masquerade: true})
	lo4, lo6 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
	a := setUp(t, m, "a",
		HostPort{Protocol: "TCP", HostPort: 8080, ContainerPort: 80}, HostPort{Protocol: "UDP", HostPort: 8080, ContainerPort: 81},
		HostPort{Protocol: "TCP", HostPort: 9090, ContainerPort: 80, HostIP: nodeIP4})
	b := setUp(t, m, "b",
		HostPort{Protocol: "TCP", HostPort: 9090, ContainerPort: 80, HostIP: lo4}, HostPort{Protocol: "TCP", HostPort: 9090, ContainerPort: 80, HostIP: nodeIP6})
	podA, podB := w.pod(a.Path), w.pod(b.Path)
	serve(t, podA, "tcp", ":80")
	serve(t, podA, "udp4", a.IPs[0].String()+":81")
	serve(t, podA, "udp6", netip.AddrPortFrom(a.IPs[1], 81).String())
	serve(t, podB, "tcp", ":80")
	at := netip.AddrPortFrom
	for _, c := range []struct {
		what    string
		from    *linuxns.NS
		network string
		to      netip.AddrPort
		want    netip.Addr
	}{
		{"world, v4", w.out, "tcp", at(nodeIP4, 8080), outIP4},
		{"world, v6", w.out, "tcp", at(nodeIP6, 8080), outIP6},
		{"world, v4", w.out, "udp", at(nodeIP4, 8080), outIP4},
		{"world, v6", w.out, "udp", at(nodeIP6, 8080), outIP6},
		{"host itself, v4", w.node, "tcp", at(nodeIP4, 8080), nodeIP4},
		{"host itself, v6", w.node, "tcp", at(nodeIP6, 8080), nodeIP6},
		{"host itself, v4", w.node, "udp", at(nodeIP4, 8080), nodeIP4},
		{"host's loopback", w.node, "tcp", at(lo4, 8080), nodeIP4},
		{"host's loopback", w.node, "udp", at(lo4, 8080), nodeIP4},
		{"another pod, v4", podB, "tcp", at(nodeIP4, 8080), b.IPs[0]},
		{"another pod, v6", podB, "tcp", at(nodeIP6, 8080), b.IPs[1]},
		{"the pod itself, v4", podA, "tcp", at(nodeIP4, 8080), nodeIP4},
		{"the pod itself, v6", podA, "tcp", at(nodeIP6, 8080), nodeIP6},
		{"same port, other host IP: a", w.out, "tcp", at(nodeIP4, 9090), outIP4},
		{"same port, other host IP: b by loopback", w.node, "tcp", at(lo4, 9090), nodeIP4},
		{"same port, other host IP: b by v6", w.out, "tcp", at(nodeIP6, 9090), outIP6},
	} {
		seen(t, c.what, c.from, c.network, c.to, c.want)
	}
	// The kernel lets no packet with ::1 leave the host: it is not translated, and refused at once.
	if _, err := ask(w.node, "tcp", at(lo6, 8080)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("host's IPv6 loopback: %v", err)
	}

	if _, err := m.Setup(context.Background(), PodNetwork{PodUID: "c", HostPorts: []HostPort{{Protocol: "UDP", HostPort: 8080, ContainerPort: 1}}}); err == nil {
		t.Error("two pods hold the same host port")
	} else {
		t.Log(err)
	}
	must(t, m.Teardown(context.Background(), "a"))
	if got, err := askFrom(w.out, "tcp", nil, at(nodeIP4, 8080), silence); err == nil {
		t.Errorf("a host port outlives its pod: %v", got)
	}
	c := setUp(t, m, "c", HostPort{Protocol: "UDP", HostPort: 8080, ContainerPort: 1})
	serve(t, w.pod(c.Path), "udp4", c.IPs[0].String()+":1")
	seen(t, "the next holder", w.out, "udp", at(nodeIP4, 8080), outIP4)
}

// TestHostPortMovesWithAFlow holds one UDP client's socket while the port's pod changes.
func TestHostPortMovesWithAFlow(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	w.start(m, Config{PodCIDRs: dualStack})
	local := &net.UDPAddr{IP: outIP4.AsSlice(), Port: 4000}
	to := netip.AddrPortFrom(nodeIP4, 8080)
	_, err := askFrom(w.out, "udp", local, to, silence)
	if err == nil {
		t.Fatal("somebody answered before there was a pod")
	}
	for _, uid := range []string{"a", "b"} {
		a := setUp(t, m, uid, HostPort{Protocol: "UDP", HostPort: 8080, ContainerPort: 81})
		serve(t, w.pod(a.Path), "udp4", a.IPs[0].String()+":81")
		if got, err := askFrom(w.out, "udp", local, to, patience); err != nil || got != outIP4 {
			t.Errorf("pod %s: %v %v", uid, got, err)
		}
		must(t, m.Teardown(context.Background(), uid))
	}
}

func TestTableHeals(t *testing.T) {
	w := newWorld(t)
	w.run(w.node, "nft", "add table inet others")
	w.run(w.node, "nft", "add chain inet others forward { type filter hook forward priority 0; }")
	m := w.manager()
	w.start(m, Config{PodCIDRs: dualStack, Masquerade: true})
	a := setUp(t, m, "a", HostPort{Protocol: "TCP", HostPort: 8080, ContainerPort: 80})
	serve(t, w.pod(a.Path), "tcp", ":80")
	want := w.run(w.node, "nft", "-s", "list", "table", "inet", tableName)
	for _, damage := range []string{
		"flush ruleset", "delete table inet " + tableName, "flush table inet " + tableName,
		"flush chain inet " + tableName + " antispoof", "flush set inet " + tableName + " pods4", "flush map inet " + tableName + " hostports-any4",
		"add element inet " + tableName + " pods4 { \"" + linkName("a") + "\" . 192.0.2.1 }",
		"insert rule inet " + tableName + " prerouting accept",
	} {
		t.Run(damage, func(t *testing.T) {
			w.run(w.node, "nft", damage)
			eventually(t, "the table is back", func() error {
				got, err := w.try(w.node, "nft", "-s", "list", "table", "inet", tableName)
				if err == nil && got != want {
					err = fmt.Errorf("it is\n%s\nbut was\n%s", got, want)
				}
				return err
			})
			seen(t, "after the damage", w.out, "tcp", netip.AddrPortFrom(nodeIP4, 8080), outIP4)
		})
	}
	if out, err := w.try(w.node, "nft", "list", "table", "inet", "others"); err == nil {
		t.Errorf("flush ruleset came after it, yet the others' table is back: %s", out)
	}
}

func TestPodRoutesHeal(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	w.start(m, Config{PodCIDRs: dualStack})
	a := setUp(t, m, "a")
	pod := w.pod(a.Path)
	w.run(w.node, "ip", "link", "set", linkName("a"), "down")
	for i, ip := range a.IPs {
		eventually(t, "the node reaches the pod again", func() error {
			to := netip.AddrPortFrom(ip, serve(t, pod, "tcp", netip.AddrPortFrom(ip, 0).String()))
			got, err := askFrom(w.node, "tcp", nil, to, 100*time.Millisecond)
			if err == nil && got != []netip.Addr{nodeIP4, nodeIP6}[i] {
				err = fmt.Errorf("from %s", got)
			}
			return err
		})
	}
}

// TestManyRanges changes the ranges that are not masqueraded as a large cluster does.
func TestManyRanges(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	cfg := Config{PodCIDRs: dualStack, Masquerade: true, ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}}
	w.start(m, cfg)
	a := setUp(t, m, "a")
	port := serve(t, w.out, "tcp", "198.51.100.2:0")
	to := netip.AddrPortFrom(outIP4, port)
	seen(t, "before", w.pod(a.Path), "tcp", to, nodeIP4)
	for i := range 5000 {
		cfg.NoMasquerade = append(cfg.NoMasquerade, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i / 128), byte(i % 128 * 2)}), 32))
	}
	cfg.NoMasquerade = append(cfg.NoMasquerade, netip.PrefixFrom(outIP4, 32))
	must(t, m.SetConfig(cfg))
	w.run(w.out, "ip", "route", "add", "10.244.1.0/24", "via", nodeIP4.String())
	eventually(t, "the address is not masqueraded", func() error {
		if got, err := askFrom(w.pod(a.Path), "tcp", nil, to, silence); err != nil || got != a.IPs[0] {
			return fmt.Errorf("from %v: %w", got, err)
		}
		return nil
	})
	if healed, err := m.rules.check(); healed || err != nil {
		t.Errorf("the table is not as wanted (%v)", err)
	}
}
