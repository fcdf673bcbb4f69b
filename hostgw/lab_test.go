package hostgw

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// lab is a LAN (a bridge in a namespace of its own) with hosts on it.
type lab struct {
	t   testing.TB
	dir string
	lan *linuxns.NS
}

type host struct {
	name string
	path string
	ns   *linuxns.NS
}

func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("VK_METAL_REQUIRE") == "all" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	l := &lab{t: t, dir: t.TempDir()}
	l.lan = l.namespace("lan")
	l.in(l.lan, "ip link add br0 type bridge", "ip link set br0 up")
	return l
}

func (l *lab) namespace(name string) *linuxns.NS {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	must(l.t, linuxns.Create(path))
	l.t.Cleanup(func() { must(l.t, linuxns.Remove(path)) })
	ns, err := linuxns.Open(path)
	must(l.t, err)
	l.t.Cleanup(func() { _ = ns.Close() })
	must(l.t, ns.Do(func() error {
		_, err := linuxns.SetSysctl(linuxns.Sysctl{Key: "net.ipv6.conf.default.accept_dad", Value: "0"})
		return err
	}))
	l.in(ns, "ip link set lo up")
	return ns
}

// host joins the LAN with addresses in CIDR form.
func (l *lab) host(name string, addrs ...string) *host {
	l.t.Helper()
	h := &host{name: name, path: filepath.Join(l.dir, name), ns: l.namespace(name)}
	must(l.t, l.lan.Do(func() error {
		br, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name, MasterIndex: br.Attrs().Index, Flags: unix.IFF_UP},
			PeerName:  "uplink", PeerNamespace: netlink.NsFd(h.ns.FD()),
		})
	}))
	l.in(l.lan, "ip link set dev "+name+" up")
	l.in(h.ns, "ip link set uplink up")
	for _, a := range addrs {
		l.in(h.ns, "ip addr add "+a+" dev uplink nodad")
	}
	return h
}

// in runs commands in a namespace and returns the last one's output.
func (l *lab) in(ns *linuxns.NS, commands ...string) string {
	l.t.Helper()
	var out []byte
	for _, c := range commands {
		must(l.t, ns.Do(func() (err error) {
			argv := strings.Fields(c)
			if out, err = exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w\n%s", c, err, out)
			}
			return nil
		}))
	}
	return string(out)
}

// router runs a Router in the host until the test ends or stop is called.
func (l *lab) router(h *host, encap ...Encapsulation) (r *Router, stop func()) {
	l.t.Helper()
	o := Options{HostNetNS: h.path, NodeName: h.name, Log: slog.New(slog.NewTextHandler(testWriter{l.t}, nil))}
	if len(encap) > 0 {
		o.Encapsulation = encap[0]
	}
	r, err := New(o)
	must(l.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			l.t.Errorf("Run: %v", err)
		}
		r.Close()
	}
	l.t.Cleanup(stop)
	return r, stop
}

// routes are the kernel's routes of our protocol (or another), as "dst via gw".
func (l *lab) routes(h *host, proto int) []string {
	l.t.Helper()
	var out []string
	must(l.t, h.ns.Do(func() error {
		list, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: netlink.RouteProtocol(proto)}, netlink.RT_FILTER_PROTOCOL)
		for _, r := range list {
			s := r.Dst.String()
			if r.Gw != nil {
				s += " via " + r.Gw.String()
			}
			if r.Type == unix.RTN_UNREACHABLE {
				s = "unreachable " + s
			}
			out = append(out, s)
		}
		return err
	}))
	slices.Sort(out)
	return out
}

// becomes waits until the kernel has exactly these routes of ours.
func (l *lab) becomes(h *host, want ...string) {
	l.t.Helper()
	slices.Sort(want)
	eventually(l.t, fmt.Sprintf("%s has %v", h.name, want), func() error {
		if got := l.routes(h, RouteProtocol); !slices.Equal(got, want) {
			return fmt.Errorf("it has %v", got)
		}
		return nil
	})
}

// ready waits until the run is over that gave the kernel its routes: it ends with Status.
func ready(t testing.TB, r *Router) {
	t.Helper()
	eventually(t, "the router is ready", r.Ready)
}

func peer(name string, addrs, cidrs string) Peer {
	p := Peer{Name: name}
	for _, a := range strings.Fields(addrs) {
		p.Addrs = append(p.Addrs, netip.MustParseAddr(a))
	}
	for _, c := range strings.Fields(cidrs) {
		p.PodCIDRs = append(p.PodCIDRs, netip.MustParsePrefix(c))
	}
	return p
}

func prefixes(s string) []netip.Prefix { return peer("", "", s).PodCIDRs }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls a condition of the kernel until it holds.
func eventually(t testing.TB, what string, cond func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = cond(); err == nil {
			return
		}
	}
	t.Fatalf("it never became true that %s: %v", what, err)
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Helper()
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}
