package services

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

const (
	testGroup = 0x766b
	testNode  = "node-a"
)

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("VK_METAL_REQUIRE") == "all" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// world is a node with pods on point-to-point links, and an outside host on a LAN that
// routes to nothing but the node.
type world struct {
	t    testing.TB
	dir  string
	node *linuxns.NS
	out  *linuxns.NS
	pods int
}

var (
	nodeIP4, outIP4 = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")
	nodeIP6, outIP6 = netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:1::2")
)

func newWorld(t testing.TB) *world {
	requireRoot(t)
	w := &world{t: t, dir: t.TempDir()}
	w.node, w.out = w.namespace("node"), w.namespace("out")
	w.join(w.node, "uplink", w.out, "lan")
	w.in(w.node, "ip addr add 198.51.100.1/24 dev uplink", "ip addr add 2001:db8:1::1/64 dev uplink nodad",
		"ip route add default via 198.51.100.2", "ip -6 route add default via 2001:db8:1::2",
		"sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	w.in(w.out, "ip addr add 198.51.100.2/24 dev lan", "ip addr add 2001:db8:1::2/64 dev lan nodad",
		"ip route add 10.0.0.0/8 via 198.51.100.1", "ip route add 203.0.113.0/24 via 198.51.100.1",
		"ip -6 route add fd00::/8 via 2001:db8:1::1")
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) namespace(name string) *linuxns.NS {
	w.t.Helper()
	must(w.t, linuxns.Create(w.path(name)))
	w.t.Cleanup(func() { must(w.t, linuxns.Remove(w.path(name))) })
	ns, err := linuxns.Open(w.path(name))
	must(w.t, err)
	w.t.Cleanup(func() { _ = ns.Close() })
	w.in(ns, "sysctl -qw net.ipv6.conf.default.accept_dad=0", "ip link set lo up")
	return ns
}

// join makes a veth pair whose ends know each other for good.
func (w *world) join(a *linuxns.NS, aName string, b *linuxns.NS, bName string) {
	w.t.Helper()
	macs := []string{"02:00:00:00:00:0a", "02:00:00:00:00:0b"}
	must(w.t, a.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: aName}, PeerName: bName, PeerNamespace: netlink.NsFd(b.FD())})
	}))
	w.in(a, "ip link set "+aName+" address "+macs[0]+" up")
	w.in(b, "ip link set "+bName+" address "+macs[1]+" up")
	for _, x := range []string{outIP4.String(), outIP6.String()} {
		w.in(a, "ip neigh add "+x+" lladdr "+macs[1]+" dev "+aName+" nud permanent")
	}
	for _, x := range []string{nodeIP4.String(), nodeIP6.String(), "169.254.1.1", "fe80::1"} {
		w.in(b, "ip neigh add "+x+" lladdr "+macs[0]+" dev "+bName+" nud permanent")
	}
}

// pod is a namespace with the next addresses, attached to the node as pods are.
type pod struct {
	ns     *linuxns.NS
	v4, v6 netip.Addr
}

func (w *world) pod() *pod {
	w.t.Helper()
	w.pods++
	n := w.pods
	p := &pod{
		ns: w.namespace(fmt.Sprintf("pod%d", n)),
		v4: netip.MustParseAddr(fmt.Sprintf("10.244.1.%d", n)), v6: netip.MustParseAddr(fmt.Sprintf("fd00:244:1::%d", n)),
	}
	host := fmt.Sprintf("vkm%d", n)
	w.join(w.node, host, p.ns, "eth0")
	w.in(p.ns, fmt.Sprintf("ip addr add %s/32 dev eth0", p.v4), fmt.Sprintf("ip addr add %s/128 dev eth0 nodad", p.v6),
		"ip route add default via 169.254.1.1 dev eth0 onlink", "ip -6 route add default via fe80::1 dev eth0 onlink")
	w.in(w.node, fmt.Sprintf("ip link set %s group %d", host, testGroup),
		fmt.Sprintf("ip route add %s dev %s", p.v4, host), fmt.Sprintf("ip -6 route add %s dev %s", p.v6, host),
		fmt.Sprintf("ip neigh add %s lladdr 02:00:00:00:00:0b dev %s nud permanent", p.v4, host),
		fmt.Sprintf("ip neigh add %s lladdr 02:00:00:00:00:0b dev %s nud permanent", p.v6, host))
	return p
}

// addr is the pod's address in the IP version of like.
func (p *pod) addr(like netip.Addr) netip.Addr {
	if like.Is6() {
		return p.v6
	}
	return p.v4
}

// in runs commands in a namespace and returns the last one's output.
func (w *world) in(ns *linuxns.NS, commands ...string) string {
	w.t.Helper()
	var out []byte
	for _, c := range commands {
		must(w.t, ns.Do(func() (err error) {
			argv := strings.Fields(c)
			if out, err = exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w\n%s", c, err, out)
			}
			return nil
		}))
	}
	return string(out)
}

// ruleset is what nft says of all tables of the node, which it must be able to.
func (w *world) ruleset() string {
	w.t.Helper()
	return w.in(w.node, "nft list ruleset")
}

// serve answers "name client-address" on TCP and UDP until the test ends.
func (w *world) serve(ns *linuxns.NS, name string, port uint16) {
	w.t.Helper()
	at := fmt.Sprintf(":%d", port)
	must(w.t, ns.Do(func() error {
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr())
				_ = c.Close()
			}
		}()
		pc, err := net.ListenPacket("udp", at)
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { _ = pc.Close() })
		go func() {
			b := make([]byte, 64)
			for {
				_, from, err := pc.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = pc.WriteTo([]byte(name+" "+from.String()+"\n"), from)
			}
		}()
		return nil
	}))
}

// answer is who answered and which client address it saw.
type answer struct {
	who    string
	client netip.Addr
}

const patience = 700 * time.Millisecond

// ask connects from inside a namespace.
func ask(ns *linuxns.NS, network string, to netip.AddrPort) (answer, error) {
	var c net.Conn
	err := ns.Do(func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c, err = (&net.Dialer{}).DialContext(ctx, network, to.String())
		return err
	})
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if network == "udp" {
		if _, err := c.Write([]byte("?")); err != nil {
			return answer{}, err
		}
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) || line == "" {
		return answer{}, fmt.Errorf("no answer: %w", err)
	}
	who, client, _ := strings.Cut(strings.TrimSpace(line), " ")
	seen, err := netip.ParseAddrPort(client)
	return answer{who, seen.Addr().Unmap()}, err
}

// outcome is an answer as tests state it: "pod1 from <address>", "refused", "silence".
func outcome(ns *linuxns.NS, network string, to netip.AddrPort) string {
	a, err := ask(ns, network, to)
	switch {
	case err == nil:
		return a.who + " from " + a.client.String()
	case strings.Contains(err.Error(), "refused"), errors.Is(err, unix.EPERM): // EPERM: UDP, refused on its way out
		return "refused"
	case strings.Contains(err.Error(), "timeout"), strings.Contains(err.Error(), "deadline"):
		return "silence"
	}
	return err.Error()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls a condition until it holds.
func eventually(t testing.TB, what string, cond func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = cond(); err == nil {
			return
		}
	}
	t.Fatalf("it never became true that %s: %v", what, err)
}

func testLog(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(testWriter{t}, nil)) }

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Helper()
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}
