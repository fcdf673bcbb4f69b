package wireguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/vk-metal/vk-metal/hostgw"
	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/testnet"
)

var (
	must       = testnet.Must
	eventually = testnet.Eventually
)

const testRotation = time.Hour

// lab is a LAN with nodes, and what the API server has of them.
type lab struct {
	*testnet.World
	t      testing.TB
	lan    *testnet.LAN
	kernel bool // the devices are the kernel's

	mu    sync.Mutex
	clock time.Time
	nodes []*labNode
}

// labNode is a node with one pod. What its agent is made of can be stopped and made anew.
type labNode struct {
	l    *lab
	n    int
	name string
	ns   *linuxns.NS
	pod  *linuxns.NS
	user *userDevices // nil with the kernel's

	mu      sync.Mutex
	keys    string // of its annotation
	tunnels *Tunnels
	router  *hostgw.Router
	stop    func()
}

func newLab(t testing.TB) *lab {
	t.Helper()
	w := testnet.Empty(t)
	l := &lab{World: w, t: t, lan: w.LAN(), clock: time.Unix(1_800_000_000, 0).Truncate(2 * testRotation)}
	l.kernel = kernelHas(t, l.Namespace("probe"))
	return l
}

// kernelHas tries to make a device. Where the kernel's files or VK_METAL_TEST_WIREGUARD=kernel
// say that there is WireGuard, it has to be; elsewhere the same program in user space is its stand-in.
func kernelHas(t testing.TB, ns *linuxns.NS) bool {
	t.Helper()
	h, err := ns.Netlink()
	must(t, err)
	defer h.Close()
	err = (&kernelDevices{ns: ns}).add(h, "probe0")
	if err == nil {
		t.Log("the devices are the kernel's")
		return true
	}
	if !errors.Is(err, ErrUnsupported) {
		t.Fatal(err)
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	must(t, err)
	modules := filepath.Join("/lib/modules", strings.TrimSpace(string(release)))
	found, _ := filepath.Glob(filepath.Join(modules, "kernel/drivers/net/wireguard/*"))
	builtin, _ := os.ReadFile(filepath.Join(modules, "modules.builtin"))
	env := os.Getenv("VK_METAL_TEST_WIREGUARD")
	if env == "none" {
		return false
	}
	if env == "kernel" || len(found) > 0 || strings.Contains(string(builtin), "wireguard.ko") {
		t.Fatal("the kernel makes no WireGuard device, and should")
	}
	t.Log("this kernel has no WireGuard: its user space implementation takes its place")
	return false
}

// node makes the n-th node, 1 to 9, with a pod; its agent is not started.
func (l *lab) node(n int) *labNode {
	l.t.Helper()
	name := fmt.Sprintf("node%d", n)
	x := &labNode{l: l, n: n, name: name, ns: l.lan.Host(name, fmt.Sprintf("192.0.2.%d/24", n), fmt.Sprintf("2001:db8::%d/64", n))}
	x.pod = l.Namespace(fmt.Sprintf("pod%d", n))
	l.Join(x.ns, "vkmpod", x.pod, "eth0")
	v4, v6 := x.podIP(4), x.podIP(6)
	l.In(x.ns, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1", fmt.Sprintf("ip link set vkmpod group %d", testnet.LinkGroup),
		fmt.Sprintf("ip route add %s dev vkmpod", v4), fmt.Sprintf("ip -6 route add %s dev vkmpod", v6),
		fmt.Sprintf("ip neigh add %s lladdr 02:00:00:00:00:0b dev vkmpod nud permanent", v4), fmt.Sprintf("ip neigh add %s lladdr 02:00:00:00:00:0b dev vkmpod nud permanent", v6),
		"ip route add default via 192.0.2.254", "ip -6 route add default via 2001:db8::fe",
		// Nobody is there, and what is sent there is heard.
		"ip neigh add 192.0.2.254 lladdr 02:00:00:00:00:77 dev uplink", "ip neigh add 2001:db8::fe lladdr 02:00:00:00:00:77 dev uplink")
	l.In(x.pod, fmt.Sprintf("ip addr add %s/32 dev eth0", v4), fmt.Sprintf("ip addr add %s/128 dev eth0 nodad", v6),
		"ip route add default via 169.254.1.1 dev eth0 onlink", "ip -6 route add default via fe80::1 dev eth0 onlink")
	l.Serve(x.pod, name, 80)
	if !l.kernel {
		x.user = newUserDevices(l.t, x.ns)
	}
	l.mu.Lock()
	l.nodes = append(l.nodes, x)
	l.mu.Unlock()
	return x
}

// podIP is the pod's address of an IP version.
func (x *labNode) podIP(version int) netip.Addr {
	if version == 4 {
		return netip.AddrFrom4([4]byte{10, 244, byte(x.n), 2})
	}
	return netip.MustParseAddr(fmt.Sprintf("fd00:244:%d::2", x.n))
}

func (x *labNode) podCIDRs() []netip.Prefix {
	return node("", "", fmt.Sprintf("10.244.%d.0/24 fd00:244:%d::/64", x.n, x.n), "").PodCIDRs
}

var clusterCIDRs = node("", "", "10.244.0.0/16 fd00:244::/32", "").PodCIDRs

// start runs the node's agent until stop, or the test's end.
func (x *labNode) start(mode Mode, change ...func(*Tunnels)) {
	l := x.l
	l.t.Helper()
	log := testnet.Log(l.t).With("node", x.name)
	tunnels, err := New(Options{
		HostNetNS: l.Path(x.name), NodeName: x.name, Mode: mode, Rotation: testRotation, ClusterCIDRs: clusterCIDRs, PodLinks: testnet.LinkGroup, Log: log,
		Announce: func(keys string) {
			x.mu.Lock()
			x.keys = keys
			x.mu.Unlock()
			go l.tell()
		},
	})
	must(l.t, err)
	tunnels.now = func() time.Time {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.clock
	}
	if x.user != nil {
		tunnels.dev, tunnels.names = x.user, x.user.names
	}
	for _, f := range change {
		f(tunnels)
	}
	router, err := hostgw.New(hostgw.Options{HostNetNS: l.Path(x.name), NodeName: x.name, Tunnels: tunnels, Log: log})
	must(l.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- router.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Errorf("Run: %v", err)
		}
		x.mu.Lock()
		x.router, x.tunnels = nil, nil
		x.mu.Unlock()
		router.Close()
	})
	x.mu.Lock()
	x.tunnels, x.router, x.stop = tunnels, router, stop
	x.mu.Unlock()
	l.t.Cleanup(stop)
	router.SetSelf(x.podCIDRs())
	l.tell()
}

// tell gives all agents what the API server has, as it does after each change.
func (l *lab) tell() {
	l.mu.Lock()
	nodes := append([]*labNode(nil), l.nodes...)
	l.mu.Unlock()
	for _, to := range nodes {
		var peers []hostgw.Peer
		for _, x := range nodes {
			if x == to {
				continue
			}
			x.mu.Lock()
			peers = append(peers, node(x.name, fmt.Sprintf("192.0.2.%d 2001:db8::%d", x.n, x.n), fmt.Sprintf("10.244.%d.0/24 fd00:244:%d::/64", x.n, x.n), x.keys))
			x.mu.Unlock()
		}
		to.mu.Lock()
		if to.router != nil {
			to.router.SetPeers(peers)
		}
		to.mu.Unlock()
	}
}

// advance moves the clock of all.
func (l *lab) advance(d time.Duration) {
	l.mu.Lock()
	l.clock = l.clock.Add(d)
	l.mu.Unlock()
	l.tell()
}

// way is how a node's agent reaches another one's pods: a device's number as "device 0",
// "plain" or "blocked".
func (x *labNode) way(to *labNode) string {
	x.mu.Lock()
	t := x.tunnels
	x.mu.Unlock()
	if t.o.Mode == Off {
		return Plain
	}
	for _, p := range t.Status().Peers {
		if p.Node != to.name {
			continue
		}
		for i, name := range t.names {
			if p.Way == Encrypted && p.Device == name {
				return fmt.Sprint("device ", i)
			}
		}
		return p.Way
	}
	return "unknown"
}

// answered waits until both nodes send to one another in a way, and both devices work if that
// is one of them.
func (l *lab) becomes(a, b *labNode, way string) {
	l.t.Helper()
	for _, pair := range [][2]*labNode{{a, b}, {b, a}} {
		eventually(l.t, fmt.Sprintf("%s reaches %s by %s", pair[0].name, pair[1].name, way), func() error {
			if got := pair[0].way(pair[1]); got != way {
				return fmt.Errorf("it is %s", got)
			}
			return nil
		})
		eventually(l.t, "the kernel has that route", func() error { return pair[0].routed(pair[1]) })
	}
}

// routed is nil if the kernel's routes are as the status says.
func (x *labNode) routed(to *labNode) error {
	h, err := x.ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	way := x.way(to)
	if way == "unknown" {
		return errors.New("the agent does not know it yet")
	}
	for _, version := range []int{4, 6} {
		routes, err := h.RouteGet(to.podIP(version).AsSlice())
		if way == Blocked {
			if err == nil {
				return fmt.Errorf("%s is blocked and has the route %v", to.name, routes)
			}
			continue
		}
		if err != nil {
			return err
		}
		link, err := h.LinkByIndex(routes[0].LinkIndex)
		if err != nil {
			return err
		}
		want := "uplink"
		if way != Plain {
			want = x.names()[way[len(way)-1]-'0']
		}
		if gw := fmt.Sprintf("192.0.2.%d", to.n); version == 4 && way == Plain && routes[0].Gw.String() != gw {
			return fmt.Errorf("the route to %s is via %s", to.name, routes[0].Gw)
		}
		if link.Attrs().Name != want {
			return fmt.Errorf("the route to %s is by %s, not %s", to.name, link.Attrs().Name, want)
		}
	}
	return nil
}

func (x *labNode) names() [slots]string {
	if x.user != nil {
		return x.user.names
	}
	return [slots]string{"vkm-wg0", "vkm-wg1"}
}

// confirmed waits until each of the two has heard the other on both devices.
func (l *lab) confirmed(a, b *labNode) {
	l.t.Helper()
	for _, x := range []*labNode{a, b} {
		eventually(l.t, x.name+" has been answered on both devices", func() error {
			x.mu.Lock()
			t := x.tunnels
			x.mu.Unlock()
			t.mu.Lock()
			defer t.mu.Unlock()
			if t.silent(0) || t.silent(1) || len(t.slots[0].peers) == 0 {
				return errors.New("it has not")
			}
			return nil
		})
	}
}

// reaches asks a pod from a namespace, over both IP versions, TCP and UDP.
func (l *lab) reaches(from *linuxns.NS, to *labNode) {
	l.t.Helper()
	for _, version := range []int{4, 6} {
		for _, network := range []string{"tcp", "udp"} {
			eventually(l.t, fmt.Sprintf("%s is reached by %s over IPv%d", to.name, network, version), func() error {
				got, err := testnet.AskOnce(from, network, addrPort(to, version))
				if err == nil && got.Who != to.name {
					err = fmt.Errorf("%s answers", got.Who)
				}
				return err
			})
		}
	}
}

// device reads a node's device from the kernel, or its stand-in, once it is there.
func (x *labNode) device(slot int) (d *wgtypes.Device) {
	x.l.t.Helper()
	dev := devices(x.user)
	if x.user == nil {
		k := &kernelDevices{ns: x.ns}
		defer k.Close()
		dev = k
	}
	eventually(x.l.t, "the device can be read", func() (err error) {
		d, err = dev.Device(x.names()[slot])
		return err
	})
	sort.Slice(d.Peers, func(i, j int) bool { return d.Peers[i].PublicKey.String() < d.Peers[j].PublicKey.String() })
	return d
}

// wire hears what is on the LAN.
type wire struct {
	l    *lab
	tap  *testnet.Tap
	seen chan map[testnet.Packet]bool
	end  testnet.Packet
}

// listen begins to hear; the marker at the end goes from the first node to the second.
func (l *lab) listen() *wire {
	l.t.Helper()
	tap, err := testnet.Listen(l.lan.NS)
	must(l.t, err)
	w := &wire{l: l, tap: tap, seen: make(chan map[testnet.Packet]bool, 1), end: testnet.Packet{
		From: netip.MustParseAddr("192.0.2.1"), To: netip.MustParseAddr("192.0.2.2"), Protocol: unix.IPPROTO_UDP, ID: 4711, Port: 9,
	}}
	go func() {
		seen, err := tap.Until(w.end)
		if err != nil {
			l.t.Errorf("listen on the LAN: %v", err)
		}
		w.seen <- seen
	}()
	return w
}

// heard ends it: which pods' packets went in plain, and how many different flows of WireGuard.
func (w *wire) heard() (plain []testnet.Packet, tunnels int) {
	w.l.t.Helper()
	var seen map[testnet.Packet]bool
	eventually(w.l.t, "the last packet is heard", func() error {
		must(w.l.t, testnet.Inject(w.l.nodes[0].ns, w.end))
		select {
		case seen = <-w.seen:
			return nil
		case <-time.After(100 * time.Millisecond):
			return errors.New("it is not")
		}
	})
	w.tap.Close()
	for p := range seen {
		for _, c := range clusterCIDRs {
			if c.Contains(p.From) || c.Contains(p.To) {
				plain = append(plain, p)
			}
		}
		if p.Protocol == unix.IPPROTO_UDP && (p.Port == DefaultPort || p.Port == DefaultPort+1) {
			tunnels++
		}
	}
	return plain, tunnels
}

// flows are UDP clients in one pod that ask another one over and over, each waiting for the
// answer: whatever is lost stops one.
type flows struct {
	l      *lab
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	asked  int
	lost   []string
}

// patience is how long an answer may take until its packet counts as lost. WireGuard repeats a
// handshake after five seconds, and keeps what waits for it.
const patience = 30 * time.Second

func (l *lab) flow(from, to *labNode) *flows {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &flows{l: l, cancel: cancel}
	for _, version := range []int{4, 6} {
		for range 4 {
			conn := l.echoClient(from, to.podIP(version))
			f.wg.Go(func() {
				defer conn.Close()
				buf := make([]byte, 64)
				for n := 0; ctx.Err() == nil; n++ {
					_ = conn.SetDeadline(time.Now().Add(patience))
					_, err := conn.Write([]byte("?"))
					if err == nil {
						_, err = conn.Read(buf)
					}
					f.mu.Lock()
					if f.asked++; err != nil {
						f.lost = append(f.lost, fmt.Sprintf("IPv%d packet %d: %v", version, n, err))
					}
					f.mu.Unlock()
				}
			})
		}
	}
	l.t.Cleanup(func() { cancel(); f.wg.Wait() })
	return f
}

func (l *lab) echoClient(from *labNode, to netip.Addr) net.Conn {
	l.t.Helper()
	var conn net.Conn
	must(l.t, from.pod.Do(func() (err error) {
		conn, err = net.Dial("udp", netip.AddrPortFrom(to, 80).String())
		return err
	}))
	return conn
}

// more waits until so many more packets were answered.
func (f *flows) more(n int) {
	f.l.t.Helper()
	count := func() int {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.asked
	}
	end := count() + n
	eventually(f.l.t, fmt.Sprint(n, " more packets are answered"), func() error {
		if got := count(); got < end {
			return fmt.Errorf("%d of %d", got, end)
		}
		return nil
	})
}

// none ends the flows: nothing may have been lost.
func (f *flows) none() {
	f.l.t.Helper()
	f.cancel()
	f.wg.Wait()
	if len(f.lost) > 0 {
		f.l.t.Errorf("%d of %d packets were lost: %s", len(f.lost), f.asked, strings.Join(f.lost, "; "))
	}
	f.l.t.Logf("%d packets, %d lost", f.asked, len(f.lost))
}

// deleteLink removes a link of a node.
func (x *labNode) deleteLink(name string) {
	x.l.t.Helper()
	must(x.l.t, x.ns.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	}))
}

func addrPort(x *labNode, version int) netip.AddrPort {
	return netip.AddrPortFrom(x.podIP(version), 80)
}

// packet is one from a node's pod.
func packet(x *labNode, to string) testnet.Packet {
	return packetFrom(x.podIP(4).String(), x.podIP(6).String(), to)
}

func packetFrom(v4, v6, to string) testnet.Packet {
	p := testnet.Packet{To: netip.MustParseAddr(to), Protocol: unix.IPPROTO_UDP, ID: 1000, Port: 7}
	if p.From = netip.MustParseAddr(v4); p.To.Is6() {
		p.From = netip.MustParseAddr(v6)
	}
	return p
}
