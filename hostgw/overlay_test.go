package hostgw

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// racks are two subnets with a router between; a and b in one, c in the other.
type racks struct {
	*lab
	a, b, c *host
	peers   []Peer
}

func newRacks(t testing.TB) *racks {
	l := newLab(t)
	k := &racks{
		lab: l, a: l.host("a", "192.0.2.1/24", "2001:db8:a::1/64"), b: l.host("b", "192.0.2.2/24", "2001:db8:a::2/64"),
		c: l.host("c", "203.0.113.3/24", "2001:db8:c::3/64"),
		peers: []Peer{
			peer("a", "192.0.2.1 2001:db8:a::1", "10.244.1.0/24 fd00:244:1::/64"),
			peer("b", "192.0.2.2 2001:db8:a::2", "10.244.2.0/24 fd00:244:2::/64"),
			peer("c", "203.0.113.3", "10.244.3.0/24 fd00:244:3::/64"), // IPv6 pods on an IPv4 network
		},
	}
	router := l.host("router", "192.0.2.254/24", "203.0.113.254/24", "2001:db8:a::fe/64", "2001:db8:c::fe/64")
	l.pods(router)
	l.In(k.a.ns, "ip route add default via 192.0.2.254", "ip route add default via 2001:db8:a::fe")
	l.In(k.b.ns, "ip route add default via 192.0.2.254", "ip route add default via 2001:db8:a::fe")
	l.In(k.c.ns, "ip route add default via 203.0.113.254")
	for i, h := range []*host{k.a, k.b, k.c} {
		l.pods(h, fmt.Sprintf("10.244.%d.5/32", i+1), fmt.Sprintf("fd00:244:%d::5/128", i+1))
	}
	return k
}

func (k *racks) start(mode Encapsulation) (routers []*Router, stop func()) {
	var stops []func()
	for i, h := range []*host{k.a, k.b, k.c} {
		r, stop := k.router(h, mode)
		r.SetSelf(k.peers[i].PodCIDRs)
		var others []Peer
		for j, p := range k.peers {
			if j != i {
				others = append(others, p)
			}
		}
		r.SetPeers(others)
		routers, stops = append(routers, r), append(stops, stop)
	}
	return routers, func() {
		for _, s := range stops {
			s()
		}
	}
}

func TestCrossSubnet(t *testing.T) {
	k := newRacks(t)
	routers, stop := k.start(EncapCrossSubnet)
	defer stop()
	k.becomes(k.a, "unreachable 10.244.1.0/24", "unreachable fd00:244:1::/64", "10.244.2.0/24 via 192.0.2.2", "fd00:244:2::/64 via 2001:db8:a::2",
		"10.244.3.0/24 via 203.0.113.3", "fd00:244:3::/64 via fe80::5c0a:142e:bb05:562d")
	out := k.In(k.a.ns, "ip route show proto 118")
	if !strings.Contains(out, "encap ip id 118 src 0.0.0.0 dst 203.0.113.3") || strings.Count(out, "encap") != 1 {
		t.Errorf("routes of a:\n%s", out)
	}
	for _, pair := range [][2]string{{"1", "2"}, {"1", "3"}, {"3", "2"}} {
		from, to := map[string]*host{"1": k.a, "3": k.c}[pair[0]], map[string]*host{"2": k.b, "3": k.c}[pair[1]]
		k.reaches(from, "10.244."+pair[0]+".5", to, "10.244."+pair[1]+".5")
		k.reaches(from, "fd00:244:"+pair[0]+"::5", to, "fd00:244:"+pair[1]+"::5")
	}
	for _, r := range routers {
		ready(t, r)
		for _, s := range r.Status() {
			if s.Err != nil || len(s.Routes) != 2 {
				t.Errorf("%+v", s)
			}
		}
	}
	t.Run("the host itself to a pod and back", func(t *testing.T) {
		k.reaches(k.a, "10.244.1.1", k.c, "10.244.3.5")
		if out := k.In(k.a.ns, "ip route get 10.244.3.5"); !strings.Contains(out, "src 10.244.1.1") {
			t.Errorf("the host's source address: %s", out)
		}
	})
	t.Run("more than fits", func(t *testing.T) {
		if out := k.In(k.a.ns, "ip link show "+overlayLink); !strings.Contains(out, "mtu 1450") {
			t.Error(out)
		}
		eventually(t, "8000 bytes pass", func() error { return k.exchange(k.a, "10.244.1.5", k.c, "10.244.3.5", 8000) })
		k.megabyte(k.a, "10.244.1.5", k.c, "10.244.3.5")
		k.megabyte(k.a, "fd00:244:1::5", k.c, "fd00:244:3::5")
	})
	t.Run("somebody deletes the device", func(t *testing.T) {
		k.In(k.a.ns, "ip link del "+overlayLink)
		k.reaches(k.a, "10.244.1.5", k.c, "10.244.3.5")
	})
	t.Run("somebody deletes neighbours and addresses", func(t *testing.T) {
		k.In(k.a.ns, "ip link set "+overlayLink+" down")
		k.reaches(k.a, "fd00:244:1::5", k.c, "fd00:244:3::5")
	})
	t.Run("a stranger on the VXLAN port", func(t *testing.T) {
		// The same packet arrives when it comes from a node, so it is the filter that drops it.
		x := k.host("x", "192.0.2.66/24")
		k.pods(x, "10.244.3.66/32")
		k.In(x.ns, "ip link add vx address "+vtepMAC("x").String()+" type vxlan external dstport 4789", "ip link set vx up",
			"ip neigh replace 192.0.2.1 lladdr "+vtepMAC("a").String()+" dev vx",
			"ip route add 10.244.1.0/24 encap ip id 118 dst 192.0.2.1 via 192.0.2.1 dev vx onlink")
		got := func() bool { return k.oneWay(x, "10.244.3.66", k.a, "10.244.1.5") }
		if got() {
			t.Error("its packet came through")
		}
		k.In(k.a.ns, "nft delete table inet vk-metal-vxlan")
		eventually(t, "the filter is back", func() error {
			if got() {
				return fmt.Errorf("its packet came through")
			}
			return nil
		})
		routers[0].SetPeers(append([]Peer{peer("x", "192.0.2.66", "")}, k.peers[1:]...))
		eventually(t, "it comes through once it is a node", func() error {
			if !got() {
				return fmt.Errorf("it does not")
			}
			return nil
		})
		routers[0].SetPeers(k.peers[1:])
		if out := k.In(k.a.ns, "nft list table inet vk-metal-vxlan"); !strings.Contains(out, "counter packets") {
			t.Error(out)
		}
	})
	t.Run("a node in the name of a neighbour's pods", func(t *testing.T) {
		// c sends from b's pod address through the overlay to a, which reaches b directly.
		k.In(k.c.ns, "ip addr add 10.244.2.66/32 dev lo", "ip route replace 10.244.1.0/24 encap ip id 118 dst 192.0.2.1 via 192.0.2.1 dev "+overlayLink+" onlink proto 118")
		if err := k.exchange(k.c, "10.244.2.66", k.a, "10.244.1.5", 16); err == nil {
			t.Error("it came through")
		}
	})
}

func TestAlwaysThenNever(t *testing.T) {
	k := newRacks(t)
	_, stop := k.start(EncapAlways)
	k.becomes(k.a, "unreachable 10.244.1.0/24", "unreachable fd00:244:1::/64", "10.244.2.0/24 via 192.0.2.2", "fd00:244:2::/64 via fe80::37dc:5a35:1b48:954d",
		"10.244.3.0/24 via 203.0.113.3", "fd00:244:3::/64 via fe80::5c0a:142e:bb05:562d")
	if out := k.In(k.a.ns, "ip route show proto 118") + k.In(k.a.ns, "ip -6 route show proto 118"); strings.Count(out, "encap") != 4 {
		t.Errorf("routes of a:\n%s", out)
	}
	k.reaches(k.a, "10.244.1.5", k.b, "10.244.2.5")
	k.reaches(k.a, "fd00:244:1::5", k.b, "fd00:244:2::5")
	stop()
	// The agent comes back with other settings: the same kernel, other routes, no device.
	_, stop = k.start(EncapNever)
	defer stop()
	k.becomes(k.a, "unreachable 10.244.1.0/24", "unreachable fd00:244:1::/64", "10.244.2.0/24 via 192.0.2.2", "fd00:244:2::/64 via 2001:db8:a::2")
	eventually(t, "the device is gone", func() error {
		if out := k.In(k.a.ns, "ip -br link"); strings.Contains(out, overlayLink) {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	k.reaches(k.a, "10.244.1.5", k.b, "10.244.2.5")
}

func TestForeignVXLANHoldsThePort(t *testing.T) {
	k := newRacks(t)
	k.In(k.a.ns, "ip link add other type vxlan external dstport 4789", "ip link set other up")
	r, _ := k.router(k.a, EncapCrossSubnet)
	r.SetSelf(k.peers[0].PodCIDRs)
	r.SetPeers(k.peers[1:])
	k.becomes(k.a, "unreachable 10.244.1.0/24", "unreachable fd00:244:1::/64", "10.244.2.0/24 via 192.0.2.2", "fd00:244:2::/64 via 2001:db8:a::2")
	eventually(t, "the router says why", func() error {
		told := slices.ContainsFunc(r.Status(), func(s PeerStatus) bool {
			return s.Name == "c" && s.Err != nil && strings.Contains(s.Err.Error(), "UDP port 4789")
		})
		if told && r.Ready() != nil {
			return nil //nolint:nilerr // the error is what is waited for
		}
		return fmt.Errorf("status %v, ready: %w", r.Status(), r.Ready())
	})
	k.In(k.a.ns, "ip link del other")
	k.becomes(k.a, "unreachable 10.244.1.0/24", "unreachable fd00:244:1::/64", "10.244.2.0/24 via 192.0.2.2", "fd00:244:2::/64 via 2001:db8:a::2",
		"10.244.3.0/24 via 203.0.113.3", "fd00:244:3::/64 via fe80::5c0a:142e:bb05:562d")
}

// oneWay says whether one datagram arrives.
func (k *racks) oneWay(from *host, src string, to *host, dst string) bool {
	var server, client net.PacketConn
	must(k.t, to.ns.Do(func() (err error) { server, err = net.ListenPacket("udp", dst+":0"); return err }))
	defer server.Close()
	must(k.t, from.ns.Do(func() (err error) { client, err = net.ListenPacket("udp", src+":0"); return err }))
	defer client.Close()
	_, err := client.WriteTo([]byte("x"), server.LocalAddr())
	must(k.t, err)
	_ = server.SetReadDeadline(time.Now().Add(150 * time.Millisecond))
	_, _, err = server.ReadFrom(make([]byte, 1))
	return err == nil
}

// megabyte sends one over TCP.
func (k *racks) megabyte(from *host, src string, to *host, dst string) {
	k.t.Helper()
	var ln net.Listener
	must(k.t, to.ns.Do(func() (err error) {
		ln, err = net.Listen("tcp", netip.AddrPortFrom(netip.MustParseAddr(dst), 0).String())
		return err
	}))
	defer ln.Close()
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() {
		if c, err := ln.Accept(); err == nil {
			_, _ = c.Write(data)
			_ = c.Close()
		}
	}()
	var conn net.Conn
	must(k.t, from.ns.Do(func() (err error) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(src), 0)), Timeout: 2 * time.Second}
		conn, err = d.Dial("tcp", ln.Addr().String())
		return err
	}))
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, data) {
		k.t.Errorf("%s to %s: %d bytes, %v", src, dst, len(got), err)
	}
}
