package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

var errKilled = errors.New("killed here")

// killAfter makes the Manager stop at a step, as a kill of the agent would: what is
// in memory is thrown away with it.
func (w *world) killAfter(step string) (*Manager, func()) {
	m := w.manager()
	m.onStep = func(s string) error {
		if s == step {
			return errKilled
		}
		return nil
	}
	return m, w.start(m, Config{PodCIDRs: dualStack, Masquerade: true})
}

// kernelState is all that the kernel has of pods, without what differs from run to run.
func (w *world) kernelState(uid string) string {
	var b strings.Builder
	b.WriteString(w.run(w.node, "nft", "-s", "list", "table", "inet", tableName))
	b.WriteString(w.run(w.node, "ip", "route", "show", "proto", fmt.Sprint(RouteProtocol)))
	b.WriteString(w.run(w.node, "ip", "-6", "route", "show", "proto", fmt.Sprint(RouteProtocol)))
	b.WriteString(w.run(w.node, "ip", "neigh", "show", "nud", "permanent", "dev", linkName(uid)))
	pod, err := linuxns.Open(w.layout().Namespace(uid, "net"))
	must(w.t, err)
	defer pod.Close()
	for _, c := range []string{"ip -br addr show dev eth0 scope global", "ip route", "ip -6 route show default", "ip neigh show nud permanent"} {
		b.WriteString(w.run(pod, strings.Fields(c)...))
	}
	return regexp.MustCompile(`@if\d+`).ReplaceAllString(b.String(), "")
}

// halfMade are states that a kill inside a step of ours can leave.
var halfMade = map[string]func(w *world, uid string){
	"namespace file without a namespace": func(w *world, uid string) {
		path := w.layout().Namespace(uid, "net")
		must(w.t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(w.t, os.WriteFile(path, nil, 0o400))
	},
	"link without identity": func(w *world, uid string) {
		must(w.t, linuxns.Create(w.layout().Namespace(uid, "net")))
		w.run(w.node, "ip", "link", "add", linkName(uid), "group", fmt.Sprint(LinkGroup), "type", "veth", "peer", "name", "eth0")
	},
	"link without namespace": func(w *world, uid string) {
		w.run(w.node, "ip", "link", "add", linkName(uid), "group", fmt.Sprint(LinkGroup), "type", "veth", "peer", "name", "eth0")
		id := identity{uid, []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00:244:1::2")}}
		w.run(w.node, "ip", "link", "set", linkName(uid), "alias", id.alias())
	},
}

func TestKilledAtEveryStep(t *testing.T) {
	steps := []string{"setup namespace", "setup link", "setup identity", "setup rules", "setup host up", "setup pod side", "setup host side", "setup sysctls"}
	pod := PodNetwork{
		PodUID: "u", Namespace: "ns", Name: "p", HostPorts: []HostPort{{Protocol: "TCP", HostPort: 80, ContainerPort: 80}},
		Sysctls: map[string]string{"net.core.somaxconn": "77"},
	}
	ctx := context.Background()
	var want string
	check := func(t *testing.T, w *world) {
		m := w.manager()
		stop := w.start(m, Config{PodCIDRs: dualStack, Masquerade: true})
		a, err := m.Setup(ctx, pod)
		must(t, err)
		all, err := m.List(ctx)
		must(t, err)
		if len(all) != 1 || all["u"].Path != a.Path || !slices.Equal(all["u"].IPs, a.IPs) {
			t.Errorf("List: %v, want %v", all, a)
		}
		got := w.kernelState("u")
		if want == "" {
			want = got
		} else if got != want {
			t.Errorf("the kernel has\n%s\nwant\n%s", got, want)
		}
		stop()
	}
	t.Run("not killed", func(t *testing.T) { check(t, newWorld(t)) })
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			m, stop := w.killAfter(step)
			if _, err := m.Setup(ctx, pod); !errors.Is(err, errKilled) {
				t.Fatalf("Setup: %v", err)
			}
			stop()
			check(t, w)
		})
		t.Run(step+", then teardown", func(t *testing.T) {
			w := newWorld(t)
			m, stop := w.killAfter(step)
			if _, err := m.Setup(ctx, pod); !errors.Is(err, errKilled) {
				t.Fatalf("Setup: %v", err)
			}
			stop()
			nothingLeft(t, w, "u")
		})
	}
	for _, step := range []string{"teardown rules", "teardown namespace"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			m, stop := w.killAfter(step)
			_, err := m.Setup(ctx, pod)
			must(t, err)
			if err := m.Teardown(ctx, "u"); !errors.Is(err, errKilled) {
				t.Fatalf("Teardown: %v", err)
			}
			stop()
			nothingLeft(t, w, "u")
		})
		t.Run(step+", then set-up", func(t *testing.T) {
			w := newWorld(t)
			m, stop := w.killAfter(step)
			_, err := m.Setup(ctx, pod)
			must(t, err)
			if err := m.Teardown(ctx, "u"); !errors.Is(err, errKilled) {
				t.Fatalf("Teardown: %v", err)
			}
			stop()
			m = w.manager()
			w.start(m, Config{PodCIDRs: dualStack, Masquerade: true})
			_, err = m.Setup(ctx, pod)
			must(t, err)
		})
	}
	for name, make := range halfMade {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			make(w, "u")
			check(t, w)
		})
		t.Run(name+", then teardown", func(t *testing.T) {
			w := newWorld(t)
			make(w, "u")
			nothingLeft(t, w, "u")
		})
	}
}

// nothingLeft tears down with a new Manager and looks for leftovers.
func nothingLeft(t *testing.T, w *world, uid string) {
	t.Helper()
	m := w.manager()
	stop := w.start(m, Config{PodCIDRs: dualStack})
	must(t, m.Teardown(context.Background(), uid))
	eventually(t, "no link is left, and none is waited for", func() error {
		out := w.run(w.node, "ip", "-br", "link", "show", "group", fmt.Sprint(LinkGroup))
		m.mu.Lock()
		defer m.mu.Unlock()
		if out != "" || len(m.dying) != 0 {
			return fmt.Errorf("%s%v", out, m.dying)
		}
		return nil
	})
	stop()
	if out := w.run(w.node, "nft", "list", "table", "inet", tableName); strings.Contains(out, linkPrefix) || strings.Contains(out, "tcp . 80") {
		t.Errorf("elements are left: %s", out)
	}
	if _, err := os.Stat(w.layout().Namespace(uid, "net")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the namespace's file: %v", err)
	}
	if len(m.alloc.used) != 0 || len(m.ports) != 0 {
		t.Errorf("addresses %v, ports %v are still claimed", m.alloc.used, m.ports)
	}
}

func TestRestartKeepsRunningPods(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	stop := w.start(m, Config{PodCIDRs: dualStack, Masquerade: true})
	a := setUp(t, m, "a", HostPort{Protocol: "TCP", HostPort: 8080, ContainerPort: 80})
	setUp(t, m, "dead", HostPort{Protocol: "TCP", HostPort: 8081, ContainerPort: 80})
	serve(t, w.pod(a.Path), "tcp", ":80")
	stop()
	// While the agent is away the other pod loses its namespace, and somebody its link.
	must(t, linuxns.Remove(w.layout().Namespace("dead", "net")))

	m = w.manager()
	w.start(m, Config{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}, Masquerade: true})
	for _, ip := range []netip.Addr{nodeIP4, nodeIP6} {
		want := outIP4
		if ip.Is6() {
			want = outIP6
		}
		seen(t, "the host port after a restart, before Setup", w.out, "tcp", netip.AddrPortFrom(ip, 8080), want)
	}
	port := serve(t, w.out, "tcp", "198.51.100.2:0")
	seen(t, "to the world with an address of the old podCIDR", w.pod(a.Path), "tcp", netip.AddrPortFrom(outIP4, port), nodeIP4)
	again := setUp(t, m, "a", HostPort{Protocol: "TCP", HostPort: 8080, ContainerPort: 80})
	if !slices.Equal(again.IPs, a.IPs) {
		t.Errorf("Setup after a restart and a new podCIDR: %v, before %v", again.IPs, a.IPs)
	}
	eventually(t, "the dead pod is gone", gone(m, "dead"))
	if out := w.run(w.node, "nft", "list", "ruleset"); strings.Contains(out, "8081") {
		t.Errorf("the dead pod's host port is left: %s", out)
	}
	if b := setUp(t, m, "b"); b.IPs[0] != netip.MustParseAddr("10.9.0.2") {
		t.Errorf("a new pod got %v", b.IPs)
	}
}

func TestParallelSetups(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	w.start(m, Config{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/25"), dualStack[1]}, Masquerade: true})
	const pods = 100
	results := make([]PodAddress, pods)
	var wg sync.WaitGroup
	for i := range 2 * pods { // each pod twice at the same time
		wg.Go(func() {
			a, err := m.Setup(context.Background(), PodNetwork{PodUID: fmt.Sprint("u", i%pods)})
			if err != nil {
				t.Error(err)
			}
			if i < pods {
				results[i] = a
			}
		})
	}
	wg.Wait()
	owner := map[netip.Addr]int{}
	for i, r := range results {
		for _, ip := range r.IPs {
			if o, dup := owner[ip]; dup {
				t.Errorf("pods %d and %d both have %s", o, i, ip)
			}
			owner[ip] = i
		}
	}
	all, err := m.List(context.Background())
	must(t, err)
	if len(all) != pods {
		t.Errorf("List has %d pods", len(all))
	}
	if healed, err := m.rules.check(); healed || err != nil {
		t.Errorf("the table is not as wanted (%v)", err)
	}
	// 126 hosts less the reserved first: 25 more fit, the next is an error.
	var last error
	n := 0
	for ; n < 60 && last == nil; n++ {
		_, last = m.Setup(context.Background(), PodNetwork{PodUID: fmt.Sprint("more", n)})
	}
	if n != 26 || !strings.Contains(last.Error(), "no free address in podCIDR 10.244.1.0/25") {
		t.Errorf("after %d more: %v", n, last)
	}
	for i := range pods {
		wg.Go(func() {
			if err := m.Teardown(context.Background(), fmt.Sprint("u", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	eventually(t, "all links are gone", func() error {
		all, err := m.List(context.Background())
		if len(all) != 26 {
			err = fmt.Errorf("%d are left", len(all))
		}
		return err
	})
	eventually(t, "addresses are free again", func() error {
		_, err := m.Setup(context.Background(), PodNetwork{PodUID: "one-more"})
		return err
	})
}

// TestNamespaceHeldOpen has a stray socket keep the namespace alive after Teardown.
func TestNamespaceHeldOpen(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	w.start(m, Config{PodCIDRs: dualStack})
	a := setUp(t, m, "a")
	held := w.pod(a.Path)
	must(t, m.Teardown(context.Background(), "a"))
	// Asked afterwards: on a slow machine the link may be gone by now.
	linked := func() bool { _, err := w.try(w.node, "ip", "link", "show", linkName("a")); return err == nil }
	all, err := m.List(context.Background())
	must(t, err)
	if (len(all["a"].IPs) == 0 || all["a"].Path != "") && linked() {
		t.Errorf("while the link is there List says %v", all)
	}
	if b := setUp(t, m, "b"); b.IPs[0] == a.IPs[0] && linked() {
		t.Errorf("%v was given away while its link is there", b)
	}
	eventually(t, "the link is deleted although the namespace is held", gone(m, "a"))
	must(t, held.Do(func() error {
		_, err := netlink.LinkByName(podLink)
		if err == nil {
			return errors.New("the pod's end is still there")
		}
		return nil
	}))
}

func TestForeignLinkAndRouteAreNotTouched(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	w.start(m, Config{PodCIDRs: dualStack})
	w.run(w.node, "ip", "link", "add", linkName("a"), "type", "bridge")
	if _, err := m.Setup(context.Background(), PodNetwork{PodUID: "a"}); err == nil || !strings.Contains(err.Error(), "not this pod's") {
		t.Errorf("Setup over a foreign link: %v", err)
	}
	must(t, m.Teardown(context.Background(), "a"))
	w.run(w.node, "ip", "link", "show", linkName("a"))
	w.run(w.node, "ip", "route", "add", "unreachable", "10.244.1.2", "proto", "static")
	var err error
	for _, uid := range []string{"b", "c"} {
		if _, e := m.Setup(context.Background(), PodNetwork{PodUID: uid}); e != nil {
			err = e
		}
	}
	if err == nil || !strings.Contains(err.Error(), "another program") {
		t.Errorf("Setup over a foreign route: %v", err)
	}
	if out := w.run(w.node, "ip", "route", "show", "proto", "static"); !strings.Contains(out, "unreachable 10.244.1.2") {
		t.Errorf("the foreign route is gone: %q", out)
	}
}

func TestBadInput(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	w.start(m, Config{PodCIDRs: dualStack})
	for what, pod := range map[string]PodNetwork{
		"no UID": {}, "path": {PodUID: "../../etc"}, "blank": {PodUID: "a b"}, "long": {PodUID: strings.Repeat("a", 300)},
		"protocol":              {PodUID: "p", HostPorts: []HostPort{{Protocol: "ICMP", HostPort: 1, ContainerPort: 1}}},
		"port 0":                {PodUID: "p", HostPorts: []HostPort{{Protocol: "TCP", ContainerPort: 1}}},
		"sysctl of the machine": {PodUID: "p", Sysctls: map[string]string{"kernel.domainname": "x"}},
		"sysctl path":           {PodUID: "p", Sysctls: map[string]string{"net/../kernel/domainname": "x"}},
		"sysctl dots":           {PodUID: "p", Sysctls: map[string]string{"net.//kernel.domainname": "x"}},
		"no such sysctl":        {PodUID: "p", Sysctls: map[string]string{"net.ipv4.none": "x"}},
		"bad value":             {PodUID: "p", Sysctls: map[string]string{"net.core.somaxconn": "many"}},
	} {
		_, err := m.Setup(context.Background(), pod)
		if err == nil {
			t.Errorf("%s: no error", what)
		}
		t.Logf("%s: %v", what, err)
	}
	for _, c := range []string{"10.244.1.1/24", "::ffff:10.0.0.0/104"} {
		if err := m.SetConfig(Config{PodCIDRs: []netip.Prefix{netip.MustParsePrefix(c)}}); err == nil {
			t.Errorf("podCIDR %s: no error", c)
		}
	}
}

func TestDial(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	w.start(m, Config{PodCIDRs: dualStack})
	a := setUp(t, m, "a")
	pod := w.pod(a.Path)
	p4 := serve(t, pod, "tcp4", "127.0.0.1:0")
	p6 := serve(t, pod, "tcp6", "[::1]:0")
	ctx := context.Background()
	for _, c := range []struct {
		network, address string
		ok               bool
	}{
		{"tcp", fmt.Sprint("localhost:", p4), true},
		{"tcp", fmt.Sprint("localhost:", p6), true},
		{"tcp", fmt.Sprint(":", p6), true},
		{"tcp4", fmt.Sprint("localhost:", p6), false},
		{"tcp6", fmt.Sprint("localhost:", p6), true},
		{"tcp", fmt.Sprint("127.0.0.1:", p4), true},
		{"tcp", fmt.Sprint("[::1]:", p4), false},
		{"udp", "localhost:1", false},
		{"tcp", "example.org:80", false},
		{"tcp", "localhost", false},
		{"tcp", "localhost:1", false},
	} {
		conn, err := m.Dial(ctx, "a", c.network, c.address)
		if (err == nil) != c.ok {
			t.Errorf("%s %s: %v", c.network, c.address, err)
		}
		if err == nil {
			b := make([]byte, 3)
			if n, err := conn.Read(b); n == 0 {
				t.Errorf("%s %s: read: %v", c.network, c.address, err)
			}
			_ = conn.Close()
		}
	}
	if _, err := m.Dial(ctx, "none", "tcp", "localhost:1"); err == nil {
		t.Error("dialled into a pod that does not exist")
	}
	short, cancel := context.WithCancel(ctx)
	cancel()
	w.run(pod, "ip", "route", "add", "blackhole", "192.0.2.7")
	if _, err := m.Dial(short, "a", "tcp", "10.244.1.99:1"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled dial: %v", err)
	}
}
