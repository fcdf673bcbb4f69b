package wireguard

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/vk-metal/vk-metal/hostgw"
	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/testnet"
)

// TestEncrypted: between pods, and from a node to another one's pods, everything on the wire is
// WireGuard's; whatever of it somebody removes comes back.
func TestEncrypted(t *testing.T) {
	l := newLab(t)
	a, b := l.node(1), l.node(2)
	wire := l.listen()
	a.start(Required)
	b.start(Required)
	l.becomes(a, b, "device 0")
	l.confirmed(a, b)
	l.reaches(a.pod, b)
	l.reaches(b.pod, a)
	l.reaches(a.ns, b)
	if plain, tunnels := wire.heard(); len(plain) > 0 || tunnels == 0 {
		t.Errorf("in plain: %+v; %d of WireGuard", plain, tunnels)
	}
	must(t, a.tunnels.Ready())

	heals := func(what string, check func() error) {
		t.Helper()
		eventually(t, "healed: "+what, func() error { return errors.Join(check(), a.routed(b)) })
		for _, from := range []*linuxns.NS{a.pod, a.ns} {
			eventually(t, "packets go again", func() error {
				_, err4 := testnet.Ask(from, "udp", addrPort(b, 4))
				_, err6 := testnet.Ask(from, "udp", addrPort(b, 6))
				return errors.Join(err4, err6)
			})
		}
	}
	before := a.device(0)
	t.Run("a device", func(t *testing.T) {
		old := a.index(0)
		a.deleteLink(a.names()[0])
		heals("with the same key", func() error {
			if now := a.index(0); now == 0 || now == old {
				return errors.New("there is none")
			}
			if now := a.device(0); now.PublicKey != before.PublicKey || now.ListenPort != before.ListenPort || len(now.Peers) != 1 {
				return fmt.Errorf("%v", now.Peers)
			}
			return nil
		})
	})
	t.Run("routes and a peer", func(t *testing.T) {
		must(t, a.dev().ConfigureDevice(a.names()[0], wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: before.Peers[0].PublicKey, Remove: true}}}))
		l.In(a.ns, "ip route del 10.244.2.0/24", "ip -6 route del fd00:244:2::/64")
		heals("the peer", func() error {
			if now := a.device(0); len(now.Peers) != 1 {
				return errors.New("it is not there")
			}
			return nil
		})
	})
	t.Run("link down", func(t *testing.T) {
		l.In(a.ns, "ip link set "+a.names()[0]+" down")
		heals("the link", func() error { return nil })
	})
	t.Run("the rules", func(t *testing.T) {
		l.In(a.ns, "nft flush ruleset")
		heals("the table", func() error {
			if got := l.In(a.ns, "nft list ruleset"); !strings.Contains(got, guardTable) {
				return errors.New(got)
			}
			return nil
		})
	})
}

// index is that of a device's link, 0 without one.
func (x *labNode) index(slot int) (index int) {
	x.l.t.Helper()
	must(x.l.t, x.ns.Do(func() error {
		link, err := netlink.LinkByName(x.names()[slot])
		if err == nil {
			index = link.Attrs().Index
		}
		if nf := (netlink.LinkNotFoundError{}); errors.As(err, &nf) {
			return nil
		}
		return err
	}))
	return index
}

func (x *labNode) dev() devices {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.tunnels.dev
}

// TestSealed: before a node that must encrypt has its fence no pod may start; an agent that
// comes back finds it standing.
func TestSealed(t *testing.T) {
	l := newLab(t)
	a := l.node(1)
	sealed := func(mode Mode) error {
		x, err := New(Options{HostNetNS: l.Path(a.name), NodeName: a.name, Mode: mode, ClusterCIDRs: clusterCIDRs})
		must(t, err)
		defer x.Close()
		return x.Sealed()
	}
	if err := sealed(Required); err == nil {
		t.Error("there is no fence yet, and pods may start")
	}
	must(t, sealed(Preferred))
	a.start(Preferred)
	eventually(t, "the table of one that need not is there", func() error {
		if got := l.In(a.ns, "nft list tables"); !strings.Contains(got, guardTable) {
			return errors.New(got)
		}
		return nil
	})
	a.stop()
	if err := sealed(Required); err == nil {
		t.Error("what need not be kept in is taken for a fence")
	}
	a.start(Required, func(x *Tunnels) { x.dev = &noDevices{x.dev} })
	eventually(t, "it is sealed, also without WireGuard", a.tunnels.Sealed)
	a.stop()
	must(t, sealed(Required))
}

// TestRotation: keys change on both nodes, and the devices in use with them, while packets are
// under way; none is lost and none goes in plain.
func TestRotation(t *testing.T) {
	l := newLab(t)
	a, b := l.node(1), l.node(2)
	a.start(Required)
	b.start(Required)
	l.becomes(a, b, "device 0")
	l.confirmed(a, b)
	wire := l.listen()
	f := l.flow(a, b)
	f.more(100)
	for _, active := range []int{0, 1} {
		idle := 1 - active
		keys := [2]wgtypes.Key{a.device(idle).PublicKey, b.device(idle).PublicKey}
		inUse := [2]wgtypes.Key{a.device(active).PublicKey, b.device(active).PublicKey}
		for range 3 { // to where the idle slot of every node is due, and not further
			l.advance(testRotation / 4)
			f.more(20)
		}
		for i, x := range []*labNode{a, b} {
			eventually(t, x.name+" has a new key on the idle device", func() error {
				if x.device(idle).PublicKey == keys[i] {
					return errors.New("it has the old one")
				}
				return nil
			})
			if x.device(active).PublicKey != inUse[i] {
				t.Errorf("%s: the key in use has changed", x.name)
			}
		}
		l.confirmed(a, b)
		l.becomes(a, b, fmt.Sprint("device ", active))
		f.more(100)
		l.advance(testRotation / 4)
		l.becomes(a, b, fmt.Sprint("device ", idle))
		f.more(100)
	}
	f.none()
	if plain, tunnels := wire.heard(); len(plain) > 0 || tunnels == 0 {
		t.Errorf("in plain: %+v; %d of WireGuard", plain, tunnels)
	}
}

// TestRestart: an agent that goes and comes changes nothing, and no packet is lost.
func TestRestart(t *testing.T) {
	l := newLab(t)
	a, b := l.node(1), l.node(2)
	a.start(Required)
	b.start(Required)
	l.becomes(a, b, "device 0")
	l.confirmed(a, b)
	f := l.flow(a, b)
	f.more(100)
	type state struct {
		keys   [slots]wgtypes.Key
		made   string
		routes string
	}
	look := func() (s state) {
		for i := range s.keys {
			d := a.device(i)
			s.keys[i] = d.PrivateKey
			s.made += l.aliasOf(a, i) + fmt.Sprintf(" %d peers ", len(d.Peers))
		}
		s.routes = l.In(a.ns, "ip route show proto 118") + l.In(a.ns, "ip -6 route show proto 118")
		return s
	}
	before := look()
	a.stop()
	f.more(100)
	a.start(Required)
	l.becomes(a, b, "device 0")
	l.confirmed(a, b)
	f.more(100)
	f.none()
	if after := look(); after != before {
		t.Error("the restart changed something of ours") // no keys in a log
	}
	for i := range slots {
		if d := a.device(i); d.Peers[0].LastHandshakeTime.IsZero() {
			t.Errorf("device %d has a new peer", i)
		}
	}
}

func (l *lab) aliasOf(x *labNode, slot int) (alias string) {
	l.t.Helper()
	must(l.t, x.ns.Do(func() error {
		link, err := netlink.LinkByName(x.names()[slot])
		if err == nil {
			alias = link.Attrs().Alias
		}
		return err
	}))
	return alias
}

// TestModes: a node without keys is reached in plain where encryption is preferred and not at
// all where it is required, and neither is one that is not known; nothing is lost when all
// begin to encrypt, and end it.
func TestModes(t *testing.T) {
	l := newLab(t)
	a, b := l.node(1), l.node(2)
	a.start(Preferred)
	b.start(Off)
	l.becomes(a, b, Plain)
	l.reaches(a.pod, b)
	f := l.flow(a, b)
	f.more(50)

	t.Run("all begin", func(t *testing.T) {
		b.stop()
		b.start(Preferred)
		l.becomes(a, b, "device 0")
		f.more(50)
	})
	t.Run("one demands", func(t *testing.T) {
		a.stop()
		a.start(Required)
		l.becomes(a, b, "device 0")
		l.confirmed(a, b)
		f.more(50)
		f.none()
	})
	t.Run("one ends", func(t *testing.T) {
		b.stop()
		b.start(Off)
		eventually(t, "b is blocked", func() error {
			if got := a.way(b); got != Blocked {
				return errors.New(got)
			}
			return a.routed(b)
		})
		wire := l.listen()
		for _, from := range []*testnet.Pod{{NS: a.pod}, {NS: a.ns}} {
			for _, version := range []int{4, 6} {
				if got, err := testnet.Ask(from.NS, "tcp", addrPort(b, version)); err == nil {
					t.Errorf("IPv%d: %+v", version, got)
				}
			}
		}
		// Not even by a route that somebody else makes, nor to a node that nobody knows.
		l.In(a.ns, "ip route add 10.244.2.2/32 via 192.0.2.2", "ip -6 route add fd00:244:2::2/128 via 2001:db8::2",
			"ip route add 10.244.77.0/24 via 192.0.2.2")
		for _, to := range []string{"10.244.2.2", "10.244.77.5", "10.244.78.5", "fd00:244:2::2", "fd00:244:78::5"} {
			_ = testnet.Inject(a.pod, packet(a, to))
			_ = testnet.Inject(a.ns, packetFrom("192.0.2.1", "2001:db8::1", to))
		}
		if plain, _ := wire.heard(); len(plain) > 0 {
			t.Errorf("in plain: %+v", plain)
		}
		// And nothing comes in from there.
		l.In(a.ns, "ip route del 10.244.2.2/32", "ip -6 route del fd00:244:2::2/128")
		if got, err := testnet.Ask(b.pod, "tcp", addrPort(a, 4)); err == nil {
			t.Errorf("%+v", got)
		}
	})
	t.Run("neither demands", func(t *testing.T) {
		a.stop()
		a.start(Preferred)
		l.becomes(a, b, Plain)
		l.reaches(a.pod, b)
		l.reaches(b.pod, a)
	})
	t.Run("the devices go", func(t *testing.T) {
		eventually(t, "b has no device", func() error {
			l.advance(leaveAfter)
			if got := l.In(b.ns, "ip -o link"); strings.Contains(got, b.names()[0]) || strings.Contains(got, b.names()[1]) {
				return errors.New(got)
			}
			return nil
		})
	})
}

// TestUnsupported: without WireGuard in the kernel a node that must encrypt says so and sends
// nothing; one that need not goes on.
func TestUnsupported(t *testing.T) {
	l := newLab(t)
	a, b := l.node(1), l.node(2)
	none := func(x *Tunnels) {
		x.dev = &noDevices{x.dev}
		if !l.kernel { // the kernel says so itself
			x.dev = &kernelDevices{ns: x.ns}
		}
	}
	a.start(Required, none)
	b.start(Preferred, none)
	eventually(t, "a says so", func() error {
		if err := a.tunnels.Ready(); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "modprobe wireguard") {
			return fmt.Errorf("it says %w", err)
		}
		return a.routed(b)
	})
	if got := a.way(b); got != Blocked {
		t.Errorf("a reaches b by %s", got)
	}
	eventually(t, "b goes on", func() error { return b.routed(a) })
	if got := b.way(a); got != Plain {
		t.Errorf("b reaches a by %s", got)
	}
	eventually(t, "b is ready", b.router.Ready)
	if err := a.router.Ready(); err == nil {
		t.Error("the routes of a node that must encrypt and cannot are called ready")
	}
}

type noDevices struct{ devices }

func (noDevices) add(*netlink.Handle, string) error { return ErrUnsupported }

// TestForeignLink: a link of our name that somebody else made is left alone.
func TestForeignLink(t *testing.T) {
	l := newLab(t)
	a := l.node(1)
	l.In(a.ns, "ip link add "+a.names()[1]+" type bridge")
	a.start(Required)
	eventually(t, "it says so", func() error {
		if err := a.tunnels.Ready(); err == nil || !strings.Contains(err.Error(), "exists and is not ours") {
			return fmt.Errorf("it says %w", err)
		}
		return nil
	})
	a.stop()
	a.start(Off)
	eventually(t, "our own one goes", func() error {
		l.advance(leaveAfter)
		if got := l.In(a.ns, "ip -o link"); strings.Contains(got, a.names()[0]) || !strings.Contains(got, a.names()[1]) {
			return errors.New(got)
		}
		return nil
	})
}

// TestFences: a range that would cut off the node itself is refused.
func TestFences(t *testing.T) {
	x := &Tunnels{o: Options{Mode: Required, ClusterCIDRs: node("", "", "10.0.0.0/8 10.244.0.0/16 192.0.2.0/24", "").PodCIDRs}}
	in := hostgw.TunnelInputs{
		Peers: []hostgw.Peer{node("b", "10.1.0.2", "10.244.2.0/24", "")}, Self: node("", "", "10.244.1.0/24", "").PodCIDRs,
		Subnets: node("", "", "192.0.2.0/25 10.244.1.1/32", "").PodCIDRs,
	}
	got, err := x.fences(&in)
	if fmt.Sprint(got) != "[10.244.0.0/16]" || err == nil || !strings.Contains(err.Error(), "10.0.0.0/8 holds the address 10.1.0.2 of node b") ||
		!strings.Contains(err.Error(), "192.0.2.0/24 holds the host's subnet 192.0.2.0/25") {
		t.Errorf("%v, %v", got, err)
	}
}
