package hostgw

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// pods gives a host an address for pods (on lo) and lets it forward.
func (l *lab) pods(h *host, ips ...string) {
	for _, ip := range ips {
		l.In(h.ns, "ip addr add "+ip+" dev lo nodad")
	}
	must(l.t, h.ns.Do(func() error {
		for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
			if _, err := linuxns.SetSysctl(linuxns.Sysctl{Key: key, Value: "1"}); err != nil {
				return err
			}
		}
		return nil
	}))
}

// reaches sends a datagram from one host's address to another's until it arrives, and
// an answer back.
func (l *lab) reaches(from *host, src string, to *host, dst string) {
	l.t.Helper()
	eventually(l.t, fmt.Sprintf("%s reaches %s", src, dst), func() error { return l.exchange(from, src, to, dst, 16) })
}

// exchange sends size bytes and expects as many back.
func (l *lab) exchange(from *host, src string, to *host, dst string, size int) error {
	var server, client net.PacketConn
	must(l.t, to.ns.Do(func() (err error) {
		server, err = net.ListenPacket("udp", netip.AddrPortFrom(netip.MustParseAddr(dst), 0).String())
		return err
	}))
	defer server.Close()
	must(l.t, from.ns.Do(func() (err error) {
		client, err = net.ListenPacket("udp", netip.AddrPortFrom(netip.MustParseAddr(src), 0).String())
		return err
	}))
	defer client.Close()
	b := make([]byte, size)
	for _, hop := range []struct{ from, to net.PacketConn }{{client, server}, {server, client}} {
		if _, err := hop.from.WriteTo(b, hop.to.LocalAddr()); err != nil {
			return err
		}
		_ = hop.to.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, peer, err := hop.to.ReadFrom(make([]byte, size))
		if err != nil {
			return err
		}
		if got := peer.(*net.UDPAddr).AddrPort(); n != size || got != hop.from.LocalAddr().(*net.UDPAddr).AddrPort() {
			return fmt.Errorf("%d bytes from %s", n, got)
		}
	}
	return nil
}

// TestPacketsBetweenNodes has two nodes route to each other's pods, and asks for one
// that nobody has.
func TestPacketsBetweenNodes(t *testing.T) {
	l := newLab(t)
	a, b := l.host("a", "192.0.2.1/24", "2001:db8::1/64"), l.host("b", "192.0.2.2/24", "2001:db8::2/64")
	l.pods(a, "10.244.1.5/32", "fd00:244:1::5/128")
	l.pods(b, "10.244.2.5/32", "fd00:244:2::5/128")
	ra, _ := l.router(a)
	rb, _ := l.router(b)
	ra.SetSelf(prefixes("10.244.1.0/24 fd00:244:1::/64"))
	rb.SetSelf(prefixes(cidrB))
	ra.SetPeers([]Peer{peer("b", nodeB, cidrB)})
	rb.SetPeers([]Peer{peer("a", "192.0.2.1 2001:db8::1", "10.244.1.0/24 fd00:244:1::/64")})
	l.reaches(a, "10.244.1.5", b, "10.244.2.5")
	l.reaches(a, "fd00:244:1::5", b, "fd00:244:2::5")
	// An unused pod address is refused by its node instead of going back to the default gateway.
	l.In(b.ns, "ip route add default via 192.0.2.1", "ip -6 route add default via 2001:db8::1")
	for _, dst := range []string{"10.244.2.77", "fd00:244:2::77"} {
		must(t, b.ns.Do(func() error {
			if r, err := netlink.RouteGet(net.ParseIP(dst)); err == nil {
				return fmt.Errorf("node b would send packets to %s on to %v", dst, r)
			}
			return nil
		}))
	}
}

// BenchmarkRoutes: the first sync of n nodes, and the change of one of them, to the kernel.
func BenchmarkRoutes(b *testing.B) {
	for _, n := range []int{1000, 5000} {
		peers := make([]Peer, n)
		for i := range peers {
			peers[i] = peer(fmt.Sprintf("node-%05d", i), fmt.Sprintf("10.0.%d.%d", 1+i/250, 1+i%250), fmt.Sprintf("10.%d.%d.0/24", 100+i/256, i%256))
		}
		b.Run(fmt.Sprintf("first sync of %d", n), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				_, _, done := benchRouter(b, nil)
				b.StartTimer()
				done(peers, n)
			}
		})
		b.Run(fmt.Sprintf("one of %d changes", n), func(b *testing.B) {
			_, h, done := benchRouter(b, peers)
			done(slices.Clone(peers), n)
			b.ResetTimer()
			for i := 0; b.Loop(); i++ {
				peers[n/2].Addrs = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 200, byte(1 + i%200)})}
				done(slices.Clone(peers), n)
			}
			_ = h
		})
	}
}

// benchRouter runs one and returns a function that gives it peers and waits for them.
func benchRouter(b *testing.B, _ []Peer) (*Router, *host, func([]Peer, int)) {
	l := newLab(b)
	h := l.host("a", "10.0.255.254/16")
	r, _ := l.router(h)
	return r, h, func(peers []Peer, n int) {
		last := peers[n/2]
		r.SetPeers(peers)
		for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Microsecond) {
			r.mu.Lock()
			have := r.have[last.PodCIDRs[0]]
			count := len(r.have)
			r.mu.Unlock()
			if count == n && have.gw == last.Addrs[0] {
				return
			}
			if time.Now().After(end) {
				b.Fatalf("%d routes after a minute", count)
			}
		}
	}
}
