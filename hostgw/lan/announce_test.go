package lan

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/testnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const port = 7

var service = Service{Name: "d/web", Addrs: addrs("192.0.2.50 2001:db8::50"), Nodes: []string{"a", "b", "c"}}

// flat is a LAN with a client and nodes. The nodes' rules lead the Service's addresses to
// themselves, as the service proxy does.
type flat struct {
	*testing.T
	w      *testnet.World
	client *linuxns.NS
	hosts  map[string]*linuxns.NS
	run    map[string]*running
	nodes  []Node
	rest   []Service
}

type running struct {
	*Announcer
	stop func()

	mu      sync.Mutex
	subnets []netip.Prefix
}

func newFlat(t *testing.T, names ...string) *flat {
	f := &flat{T: t, w: testnet.Empty(t), hosts: map[string]*linuxns.NS{}, run: map[string]*running{}, rest: []Service{service}}
	lan := f.w.Namespace("lan")
	f.w.In(lan, "ip link add br0 type bridge", "ip link set br0 up")
	for i, name := range append([]string{"client"}, names...) {
		ns := f.w.Namespace(name)
		f.hosts[name] = ns
		f.w.In(lan, fmt.Sprintf("ip link add name %s type veth peer name eth0 netns %s", name, f.w.Path(name)), "ip link set dev "+name+" master br0 up")
		f.w.In(ns, "ip link set eth0 up", fmt.Sprintf("ip addr add 192.0.2.%d/24 dev eth0", i+1), fmt.Sprintf("ip addr add 2001:db8::%d/64 dev eth0 nodad", i+1),
			"sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.eth0.keep_addr_on_down=1")
		if name == "client" {
			continue
		}
		for family, to := range map[string][2]string{"ip": {"192.0.2.50", fmt.Sprintf("192.0.2.%d", i+1)}, "ip6": {"2001:db8::50", fmt.Sprintf("2001:db8::%d", i+1)}} {
			f.w.In(ns, "nft add table "+family+" t", "nft add chain "+family+" t pre { type nat hook prerouting priority -100 ; }",
				fmt.Sprintf("nft add rule %s t pre %s daddr %s dnat to %s", family, family, to[0], to[1]))
		}
		f.w.Serve(ns, name, port)
		f.nodes = append(f.nodes, Node{Name: name, Subnets: []netip.Prefix{lan4, lan6}, Ready: true})
	}
	f.client = f.hosts["client"]
	return f
}

// start runs the announcers of these nodes and tells all what is known.
func (f *flat) start(names ...string) {
	f.Helper()
	for _, name := range names {
		r := &running{}
		a, err := New(Options{HostNetNS: f.w.Path(name), NodeName: name, Silence: 2 * time.Second, Log: testnet.Log(f), Subnets: func(list []netip.Prefix) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.subnets = list
		}})
		testnet.Must(f, err)
		r.Announcer = a
		ctx, cancel := context.WithCancel(f.Context())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		r.stop = sync.OnceFunc(func() {
			cancel()
			testnet.Must(f, <-done)
		})
		f.Cleanup(r.stop)
		f.run[name] = r
	}
	f.tell()
}

func (f *flat) tell() {
	for _, r := range f.run {
		r.Set(Inputs{Nodes: slices.Clone(f.nodes), Services: f.rest})
	}
}

// announcer and standby of an address.
func (f *flat) chosen(a netip.Addr) Address {
	plan := Plan(Inputs{Nodes: f.nodes, Services: f.rest})
	return plan[slices.IndexFunc(plan, func(p Address) bool { return p.Addr == a })]
}

// reaches waits until the client's connection to the address ends at a node.
func (f *flat) reaches(a netip.Addr, node string) time.Duration {
	f.Helper()
	begin := time.Now()
	testnet.Eventually(f, fmt.Sprintf("%s leads to %s", a, node), func() error {
		for _, network := range []string{"tcp", "udp"} {
			got, err := testnet.Ask(f.client, network, netip.AddrPortFrom(a, port))
			if err != nil || got.Who != node {
				return fmt.Errorf("%s: %+v, %w", network, got, err)
			}
		}
		return nil
	})
	return time.Since(begin)
}

func (f *flat) set(name string, change func(n *Node)) {
	for i := range f.nodes {
		if f.nodes[i].Name == name {
			change(&f.nodes[i])
		}
	}
	f.tell()
}

// TestAnnounce: a client's kernel finds the address with the node that was chosen, and
// follows when it moves: it does not ask again, the new announcer tells it.
func TestAnnounce(t *testing.T) {
	f := newFlat(t, "a", "b", "c")
	f.start("a", "b", "c")
	for _, a := range service.Addrs {
		f.reaches(a, f.chosen(a).Node)
	}
	if out := f.w.In(f.client, "ip neigh show"); !strings.Contains(out, "192.0.2.50 dev eth0 lladdr") {
		t.Errorf("the client has no neighbour for the address:\n%s", out)
	}
	for _, a := range service.Addrs {
		before := f.chosen(a)
		f.set(before.Node, func(n *Node) { n.Ready = false })
		if now := f.chosen(a).Node; now != before.Standby {
			t.Fatalf("%s goes from %+v to %s", a, before, now)
		}
		t.Logf("%s: not ready, the next node answers after %s", a, f.reaches(a, before.Standby).Round(time.Millisecond))
		f.set(before.Node, func(n *Node) { n.Ready = true })
		t.Logf("%s: ready again, it answers after %s", a, f.reaches(a, before.Node).Round(time.Millisecond))
	}
	f.rest = nil
	f.tell()
	for _, a := range service.Addrs {
		testnet.Eventually(t, "nobody answers", func() error {
			f.w.In(f.client, "ip neigh flush all")
			if got, err := testnet.Ask(f.client, "udp", netip.AddrPortFrom(a, port)); err == nil {
				return fmt.Errorf("%+v", got)
			}
			return nil
		})
	}
}

// TestStandby: the announcer's agent is gone while its Node still says Ready; the next one
// notices by itself. When it is back, it has its addresses again.
func TestStandby(t *testing.T) {
	f := newFlat(t, "a", "b", "c")
	f.start("a", "b", "c")
	for _, a := range service.Addrs {
		before := f.chosen(a)
		f.reaches(a, before.Node)
		f.run[before.Node].stop()
		delete(f.run, before.Node)
		f.w.In(f.hosts[before.Node], "ip link set eth0 down")
		t.Logf("the node of %s is dead, the next one answers after %s", a, f.reaches(a, before.Standby).Round(time.Millisecond))
		f.w.In(f.hosts[before.Node], "ip link set eth0 up")
		f.start(before.Node)
		t.Logf("it is back, it answers after %s", f.reaches(a, before.Node).Round(time.Millisecond))
	}
}

// TestLinkFlap: what happens to a link is followed, subnets are published.
func TestLinkFlap(t *testing.T) {
	f := newFlat(t, "a")
	f.start("a")
	a := service.Addrs[1]
	published := func(want ...netip.Prefix) {
		t.Helper()
		testnet.Eventually(t, fmt.Sprintf("%v is published", want), func() error {
			r := f.run["a"]
			r.mu.Lock()
			defer r.mu.Unlock()
			if !slices.Equal(r.subnets, want) {
				return fmt.Errorf("%v", r.subnets)
			}
			return nil
		})
	}
	published(lan4, lan6)
	f.reaches(a, "a")
	f.w.In(f.hosts["a"], "ip link set eth0 down")
	f.w.In(f.client, "ip neigh flush all")
	published()
	f.w.In(f.hosts["a"], "ip link set eth0 up")
	published(lan4, lan6)
	f.reaches(a, "a")
	f.w.In(f.hosts["a"], "ip link set eth0 down", "ip link set eth0 address 02:00:00:00:00:77", "ip link set eth0 up")
	f.w.In(f.client, "ip neigh flush all")
	f.reaches(a, "a")
	f.w.In(f.hosts["a"], "ip addr add 192.0.2.50/32 dev eth0") // now the kernel answers
	f.rest = []Service{{Name: "d/web", Addrs: service.Addrs[1:], Nodes: service.Nodes}}
	f.tell()
	f.reaches(a, "a")
}

// TestDuplicate: a host that looks whether the address is free learns that it is not.
func TestDuplicate(t *testing.T) {
	f := newFlat(t, "a")
	f.start("a")
	for _, a := range service.Addrs {
		f.reaches(a, "a")
	}
	f.w.In(f.client, "sysctl -qw net.ipv6.conf.eth0.accept_dad=1 net.ipv6.conf.eth0.dad_transmits=10", "ip addr add 2001:db8::50/64 dev eth0")
	testnet.Eventually(t, "the client's kernel refuses the address", func() error {
		if out := f.w.In(f.client, "ip -6 addr show dev eth0"); !strings.Contains(out, "dadfailed") {
			return errors.New(out)
		}
		return nil
	})
}
