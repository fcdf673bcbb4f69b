package hostgw

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/testnet"
)

var (
	must       = testnet.Must
	eventually = testnet.Eventually
)

// lab is a LAN (a bridge in a namespace of its own) with hosts on it.
type lab struct {
	*testnet.World
	t   testing.TB
	lan *testnet.LAN
}

type host struct {
	name string
	path string
	ns   *linuxns.NS
}

func newLab(t testing.TB) *lab {
	t.Helper()
	w := testnet.Empty(t)
	return &lab{World: w, t: t, lan: w.LAN()}
}

// host joins the LAN with addresses in CIDR form.
func (l *lab) host(name string, addrs ...string) *host {
	l.t.Helper()
	return &host{name: name, path: l.Path(name), ns: l.lan.Host(name, addrs...)}
}

// router runs a Router in the host until the test ends or stop is called.
func (l *lab) router(h *host, encap ...Encapsulation) (r *Router, stop func()) {
	l.t.Helper()
	o := Options{HostNetNS: h.path, NodeName: h.name, Log: testnet.Log(l.t)}
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
