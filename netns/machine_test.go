package netns

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/internal/testnet"
)

var (
	must       = testnet.Must
	eventually = testnet.Eventually
)

// world is a node, a host of the world and a LAN between them, each a real namespace.
type world struct {
	t     testing.TB
	dir   string
	node  *linuxns.NS
	out   *linuxns.NS
	nodeP string
}

var (
	nodeIP4, outIP4 = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")
	nodeIP6, outIP6 = netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:1::2")
	dualStack       = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:244:1::/64")}
)

func newWorld(t testing.TB) *world {
	hosts := testnet.Empty(t)
	w := &world{t: t, dir: t.TempDir(), nodeP: hosts.Path("node")}
	w.node, w.out = hosts.Namespace("node"), hosts.Namespace("out")
	must(t, w.node.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "lan", PeerNamespace: netlink.NsFd(w.out.FD())})
	}))
	w.ip(w.node, "uplink", nodeIP4, nodeIP6)
	w.ip(w.out, "lan", outIP4, outIP6)
	w.run(w.node, "ip", "route", "add", "default", "via", outIP4.String())
	w.run(w.node, "ip", "route", "add", "default", "via", outIP6.String())
	w.settle(w.node, "uplink", nodeIP6)
	w.settle(w.out, "lan", outIP6)
	// The kernel joins a new link's multicast groups up to a second late; neighbour
	// discovery on the LAN is not what is tested.
	w.knows(w.node, "uplink", w.out, "lan", outIP6)
	w.knows(w.out, "lan", w.node, "uplink", nodeIP6)
	t.Cleanup(func() { w.removePods() })
	return w
}

func (w *world) ip(ns *linuxns.NS, link string, addrs ...netip.Addr) {
	w.t.Helper()
	must(w.t, ns.Do(func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			bits := 24
			if a.Is6() {
				bits = 64
			}
			if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, bits)), Flags: unix.IFA_F_NODAD}); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	}))
}

// settle waits until a link's end can send and its address receives.
func (w *world) settle(ns *linuxns.NS, link string, ip netip.Addr) {
	w.t.Helper()
	h, err := ns.Netlink()
	must(w.t, err)
	defer h.Close()
	l, err := h.LinkByName(link)
	must(w.t, err)
	must(w.t, canSend(h, l.Attrs().Index))
	must(w.t, canReceive(h, []netip.Addr{ip}))
}

// knows gives ns a permanent neighbour on its link: ip is on the other's link.
func (w *world) knows(ns *linuxns.NS, link string, other *linuxns.NS, otherLink string, ip netip.Addr) {
	w.t.Helper()
	var l, o netlink.Link
	must(w.t, other.Do(func() (err error) { o, err = netlink.LinkByName(otherLink); return err }))
	must(w.t, ns.Do(func() (err error) { l, err = netlink.LinkByName(link); return err }))
	h, err := ns.Netlink()
	must(w.t, err)
	defer h.Close()
	must(w.t, permanentNeighbour(h, l, ip, o.Attrs().HardwareAddr))
}

// run executes a program inside a namespace and returns its output.
func (w *world) run(ns *linuxns.NS, argv ...string) string {
	w.t.Helper()
	out, err := w.try(ns, argv...)
	if err != nil {
		w.t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return out
}

func (w *world) try(ns *linuxns.NS, argv ...string) (string, error) {
	var out []byte
	err := ns.Do(func() (err error) {
		out, err = exec.Command(argv[0], argv[1:]...).CombinedOutput()
		return err
	})
	return string(out), err
}

func (w *world) layout() paths.Layout {
	return paths.Layout{Run: filepath.Join(w.dir, "run"), Lib: filepath.Join(w.dir, "lib")}
}

// removePods unbinds what a test left.
func (w *world) removePods() {
	dirs, _ := os.ReadDir(filepath.Join(w.dir, "run", "pods"))
	for _, d := range dirs {
		must(w.t, linuxns.Remove(w.layout().Namespace(d.Name(), "net")))
	}
}

// manager is a Manager that does not run.
func (w *world) manager() *Manager {
	w.t.Helper()
	m, err := NewManager(Options{Layout: w.layout(), HostNetNS: w.nodeP, Log: testnet.Log(w.t)})
	must(w.t, err)
	return m
}

// start runs a Manager until the returned function, or the test, ends.
func (w *world) start(m *Manager, cfg Config) (stop func()) {
	w.t.Helper()
	must(w.t, m.SetConfig(cfg))
	stop = w.runs(m.Run, m.Close)
	eventually(w.t, "the manager is ready", func() error { return m.Ready() })
	return stop
}

// runs runs something until the returned function, or the test, ends; then it closes it.
func (w *world) runs(run func(context.Context) error, closeIt func()) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
		closeIt()
	}
	w.t.Cleanup(stop)
	return stop
}

func (w *world) pod(path string) *linuxns.NS {
	w.t.Helper()
	ns, err := linuxns.Open(path)
	must(w.t, err)
	w.t.Cleanup(func() { _ = ns.Close() })
	return ns
}

func gone(m *Manager, uid string) func() error {
	return func() error {
		all, err := m.List(context.Background())
		if err == nil && all[uid].IPs != nil {
			err = fmt.Errorf("pod %s still has %v", uid, all[uid])
		}
		return err
	}
}
