// Package testnet is a node with pods, as network namespaces of a test: what is sent there
// shows what rules do. It is for tests only, and knows neither the pod network nor Services.
package testnet

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

// What the tests agree on.
const (
	LinkGroup = 0x766b
	NodeName  = "node-a"
)

// RequireRoot skips the test without root, or fails it where everything has to run.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("VK_METAL_REQUIRE") == "all" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// World is a node with pods on point-to-point links, and an outside host on a LAN that
// routes to nothing but the node.
type World struct {
	t   testing.TB
	dir string
	// Node is the host, Out another one on its LAN.
	Node *linuxns.NS
	Out  *linuxns.NS
	pods int
}

// Addresses of the node and of the outside host on their LAN.
var (
	NodeIP4, OutIP4 = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")
	NodeIP6, OutIP6 = netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:1::2")
)

// Empty makes a world without hosts.
func Empty(t testing.TB) *World {
	RequireRoot(t)
	return &World{t: t, dir: t.TempDir()}
}

// New makes a world without pods, which goes with the test.
func New(t testing.TB) *World {
	w := Empty(t)
	w.Node, w.Out = w.Namespace("node"), w.Namespace("out")
	w.Join(w.Node, "uplink", w.Out, "lan")
	w.In(w.Node, "ip addr add 198.51.100.1/24 dev uplink", "ip addr add 2001:db8:1::1/64 dev uplink nodad",
		"ip route add default via 198.51.100.2", "ip -6 route add default via 2001:db8:1::2",
		"sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	w.In(w.Out, "ip addr add 198.51.100.2/24 dev lan", "ip addr add 2001:db8:1::2/64 dev lan nodad",
		"ip route add 10.0.0.0/8 via 198.51.100.1", "ip route add 203.0.113.0/24 via 198.51.100.1",
		"ip -6 route add fd00::/8 via 2001:db8:1::1")
	w.settle(w.Node, "uplink", NodeIP6)
	w.settle(w.Out, "lan", OutIP6)
	return w
}

// Path is where a namespace of that name is bound.
func (w *World) Path(name string) string { return filepath.Join(w.dir, name) }

// Namespace makes one.
func (w *World) Namespace(name string) *linuxns.NS {
	w.t.Helper()
	Must(w.t, linuxns.Create(w.Path(name)))
	w.t.Cleanup(func() { Must(w.t, linuxns.Remove(w.Path(name))) })
	ns, err := linuxns.Open(w.Path(name))
	Must(w.t, err)
	w.t.Cleanup(func() { _ = ns.Close() })
	w.In(ns, "sysctl -qw net.ipv6.conf.default.accept_dad=0", "ip link set lo up")
	return ns
}

// Join makes a veth pair whose ends know each other for good.
func (w *World) Join(a *linuxns.NS, aName string, b *linuxns.NS, bName string) {
	w.t.Helper()
	macs := []string{"02:00:00:00:00:0a", "02:00:00:00:00:0b"}
	Must(w.t, a.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: aName}, PeerName: bName, PeerNamespace: netlink.NsFd(b.FD())})
	}))
	w.In(a, "ip link set "+aName+" address "+macs[0]+" up")
	w.In(b, "ip link set "+bName+" address "+macs[1]+" up")
	for _, x := range []string{OutIP4.String(), OutIP6.String()} {
		w.In(a, "ip neigh add "+x+" lladdr "+macs[1]+" dev "+aName+" nud permanent")
	}
	for _, x := range []string{NodeIP4.String(), NodeIP6.String(), "169.254.1.1", "fe80::1"} {
		w.In(b, "ip neigh add "+x+" lladdr "+macs[0]+" dev "+bName+" nud permanent")
	}
}

// Pod is a namespace with the next addresses, attached to the node as pods are.
type Pod struct {
	NS     *linuxns.NS
	V4, V6 netip.Addr
}

// Pod makes the next pod.
func (w *World) Pod() *Pod {
	w.t.Helper()
	w.pods++
	n := w.pods
	p := &Pod{
		NS: w.Namespace(fmt.Sprintf("pod%d", n)),
		V4: netip.MustParseAddr(fmt.Sprintf("10.244.1.%d", n)), V6: netip.MustParseAddr(fmt.Sprintf("fd00:244:1::%d", n)),
	}
	host := fmt.Sprintf("vkm%d", n)
	w.Join(w.Node, host, p.NS, "eth0")
	w.In(p.NS, fmt.Sprintf("ip addr add %s/32 dev eth0", p.V4), fmt.Sprintf("ip addr add %s/128 dev eth0 nodad", p.V6),
		"ip route add default via 169.254.1.1 dev eth0 onlink", "ip -6 route add default via fe80::1 dev eth0 onlink")
	w.In(w.Node, fmt.Sprintf("ip link set %s group %d", host, LinkGroup),
		fmt.Sprintf("ip route add %s dev %s", p.V4, host), fmt.Sprintf("ip -6 route add %s dev %s", p.V6, host),
		fmt.Sprintf("ip neigh add %s lladdr 02:00:00:00:00:0b dev %s nud permanent", p.V4, host),
		fmt.Sprintf("ip neigh add %s lladdr 02:00:00:00:00:0b dev %s nud permanent", p.V6, host))
	w.settle(p.NS, "eth0", p.V6)
	w.settle(w.Node, host, NodeIP6)
	return p
}

// settle waits until both ends of a link can send and the IPv6 address receives: the kernel
// does both in work queues, and drops packets before.
func (w *World) settle(ns *linuxns.NS, link string, addr netip.Addr) {
	w.t.Helper()
	h, err := ns.Netlink()
	Must(w.t, err)
	defer h.Close()
	Eventually(w.t, link+" and "+addr.String()+" can be used", func() error {
		l, err := h.LinkByName(link)
		if err != nil {
			return err
		}
		if l.Attrs().OperState != netlink.OperUp {
			return errors.New("no carrier")
		}
		routes, err := h.RouteGet(addr.AsSlice())
		if err == nil && (len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL) {
			err = errors.New("the address is not local")
		}
		return err
	})
}

// Addr is the pod's address in the IP version of like.
func (p *Pod) Addr(like netip.Addr) netip.Addr {
	if like.Is6() {
		return p.V6
	}
	return p.V4
}

// In runs commands in a namespace and returns the last one's output.
func (w *World) In(ns *linuxns.NS, commands ...string) string {
	w.t.Helper()
	var out []byte
	for _, c := range commands {
		Must(w.t, ns.Do(func() (err error) {
			argv := strings.Fields(c)
			if out, err = exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w\n%s", c, err, out)
			}
			return nil
		}))
	}
	return string(out)
}

// Ruleset is what nft says of all tables of the node, which it Must be able to.
func (w *World) Ruleset() string {
	w.t.Helper()
	return w.In(w.Node, "nft list ruleset")
}

// Serve answers "name client-address" on TCP and UDP until the test ends.
func (w *World) Serve(ns *linuxns.NS, name string, port uint16) {
	w.t.Helper()
	at := fmt.Sprintf(":%d", port)
	Must(w.t, ns.Do(func() error {
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

// Answer is who answered and which client address it saw.
type Answer struct {
	Who    string
	Client netip.Addr
}

// silence is how long nobody may answer for there to be none, patience how long an answer
// may take that has to come: the machine may be busy.
const silence, patience = 700 * time.Millisecond, 30 * time.Second

// Ask connects from inside a namespace, as one who asks again when there is no answer soon.
func Ask(ns *linuxns.NS, network string, to netip.AddrPort) (Answer, error) {
	return ask(ns, network, to, silence)
}

// AskOnce is for an answer that has to come: it waits long, for one packet's answer.
func AskOnce(ns *linuxns.NS, network string, to netip.AddrPort) (Answer, error) {
	return ask(ns, network, to, patience)
}

func ask(ns *linuxns.NS, network string, to netip.AddrPort, patience time.Duration) (Answer, error) {
	var c net.Conn
	err := ns.Do(func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c, err = (&net.Dialer{}).DialContext(ctx, network, to.String())
		return err
	})
	if err != nil {
		return Answer{}, err
	}
	defer c.Close()
	if err := FirstPassed(c); err != nil {
		return Answer{}, err
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if network == "udp" {
		if _, err := c.Write([]byte("?")); err != nil {
			return Answer{}, err
		}
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) || line == "" {
		return Answer{}, fmt.Errorf("no Answer: %w", err)
	}
	who, client, _ := strings.Cut(strings.TrimSpace(line), " ")
	seen, err := netip.ParseAddrPort(client)
	return Answer{who, seen.Addr().Unmap()}, err
}

// FirstPassed is an error if TCP had to send a packet again: somebody dropped the first.
func FirstPassed(c net.Conn) error {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return err
	}
	var info *unix.TCPInfo
	if e := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); e != nil || err != nil {
		return errors.Join(e, err)
	}
	if info.Total_retrans > 0 {
		return errors.New("timeout: only a packet that was sent again was answered")
	}
	return nil
}

// Outcome is what comes of Ask as tests state it: "pod1 from <address>", "refused", "silence".
func Outcome(ns *linuxns.NS, network string, to netip.AddrPort) string {
	return outcome(Ask(ns, network, to))
}

// OutcomeOnce is what comes of one packet that has to have that outcome: silence is known
// soon, and an answer waited for.
func OutcomeOnce(ns *linuxns.NS, network string, to netip.AddrPort, want string) string {
	if want == "silence" {
		return Outcome(ns, network, to)
	}
	return outcome(AskOnce(ns, network, to))
}

func outcome(a Answer, err error) string {
	switch {
	case err == nil:
		return a.Who + " from " + a.Client.String()
	case strings.Contains(err.Error(), "refused"), errors.Is(err, unix.EPERM): // EPERM: UDP, refused on its way out
		return "refused"
	case strings.Contains(err.Error(), "timeout"), strings.Contains(err.Error(), "deadline"):
		return "silence"
	}
	return err.Error()
}

// Must ends the test at an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Eventually polls a condition until it holds.
func Eventually(t testing.TB, what string, cond func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = cond(); err == nil {
			return
		}
	}
	t.Fatalf("it never became true that %s: %v", what, err)
}

// Log writes to the test.
func Log(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(testWriter{t}, nil)) }

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Helper()
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}
