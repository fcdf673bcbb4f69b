package bgp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/config"
	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/testnet"
)

// TestMain runs a Speaker when told to: GoBGP works in the network namespace of its
// process, and only a process can be killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("BGP_SPEAKER_DIR"); dir != "" {
		if err := speak(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// order is what the test tells its speaker, one JSON line each; the answer is a Status.
type order struct {
	Config   string // YAML; empty is none
	Self     Node
	Others   []Node
	Services []Service
	Withdraw *bool
	Ask      bool
	Leave    bool // when it is ended
}

func speak(dir string) error {
	leave := false
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	reopen, _ := time.ParseDuration(os.Getenv("BGP_SPEAKER_REOPEN"))
	s, err := New(Options{Dir: dir, Install: os.Getenv("BGP_SPEAKER_INSTALL") != "no", Log: log, Leave: func() bool { return leave }, Reopen: reopen})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	orders, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := orders.Decode(&o); err != nil {
			cancel()
			return <-done
		}
		switch {
		case o.Leave:
			leave = true
			cancel()
			return <-done
		case o.Withdraw != nil:
			if err := s.Withdraw(*o.Withdraw); err != nil {
				return err
			}
		case o.Ask:
			st, err := s.Status(ctx)
			if err != nil {
				return err
			}
			if err := answers.Encode(st); err != nil {
				return err
			}
		case o.Config == "":
			s.Set(nil)
		default:
			cfg, err := config.ParseBGP("test", []byte("apiVersion: vk-metal.io/v1alpha1\nkind: BGPConfig\n"+o.Config))
			if err != nil {
				return err
			}
			s.Set(&Inputs{Config: cfg, Self: o.Self, Others: o.Others, Services: o.Services})
		}
	}
}

var (
	must       = testnet.Must
	eventually = testnet.Eventually
)

// lab holds hosts in network namespaces of their own.
type lab struct {
	t   testing.TB
	dir string
}

type host struct {
	l    *lab
	name string
	path string
	ns   *linuxns.NS
}

func newLab(t testing.TB) *lab {
	t.Helper()
	testnet.RequireRoot(t)
	// Short: it holds sockets. In /tmp: FRR gives up root, and $TMPDIR may be for root alone.
	dir, err := os.MkdirTemp("/tmp", "bgp")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return &lab{t: t, dir: dir}
}

// missing skips, or fails where nothing may be missing.
func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("VK_METAL_REQUIRE") == "all" {
		t.Fatal(what)
	}
	t.Skip(what)
}

func (l *lab) host(name string) *host {
	l.t.Helper()
	h := &host{l: l, name: name, path: filepath.Join(l.dir, name)}
	must(l.t, linuxns.Create(h.path))
	l.t.Cleanup(func() { must(l.t, linuxns.Remove(h.path)) })
	var err error
	h.ns, err = linuxns.Open(h.path)
	must(l.t, err)
	l.t.Cleanup(func() { _ = h.ns.Close() })
	for key, value := range map[string]string{
		"net.ipv6.conf.default.accept_dad": "0", "net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1",
		"net.ipv4.fib_multipath_hash_policy": "1", "net.ipv6.fib_multipath_hash_policy": "1",
	} {
		must(l.t, h.ns.Do(func() error {
			_, err := linuxns.SetSysctl(linuxns.Sysctl{Key: key, Value: value})
			return err
		}))
	}
	h.run("ip link set dev lo up")
	return h
}

// join makes a link between two hosts, each end named after the other host, with
// addresses in CIDR form.
func (h *host) join(o *host, mine, its string) {
	h.l.t.Helper()
	must(h.l.t, h.ns.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: o.name}, PeerName: h.name, PeerNamespace: netlink.NsFd(o.ns.FD())})
	}))
	for _, end := range []struct {
		on    *host
		link  string
		addrs string
	}{{h, o.name, mine}, {o, h.name, its}} {
		end.on.run("ip link set dev " + end.link + " up")
		for _, a := range strings.Fields(end.addrs) {
			end.on.run("ip addr add " + a + " dev " + end.link + " nodad")
		}
	}
}

// run runs commands in the host and returns the last one's output.
func (h *host) run(commands ...string) string {
	h.l.t.Helper()
	var out string
	for _, c := range commands {
		var err error
		if out, err = h.try(strings.Fields(c)...); err != nil {
			h.l.t.Fatal(err)
		}
	}
	return out
}

func (h *host) try(argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + h.path, "--"}, argv...)...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %s: %w\n%s", h.name, strings.Join(argv, " "), err, out)
	}
	return string(out), nil
}

// daemon runs a program in the host until the test ends or stop is called.
func (h *host) daemon(argv ...string) (stop func()) {
	h.l.t.Helper()
	cmd := exec.Command("nsenter", append([]string{"--net=" + h.path, "--"}, argv...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log := &lines{t: h.l.t, prefix: h.name}
	cmd.Stdout, cmd.Stderr = log, log
	must(h.l.t, cmd.Start())
	var once sync.Once
	stop = func() {
		once.Do(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
	h.l.t.Cleanup(stop)
	return stop
}

// bird runs BIRD 2 with a configuration behind the common head.
func (h *host) bird(id, conf string) (stop func()) {
	h.l.t.Helper()
	need(h.l.t, "bird")
	file := filepath.Join(h.l.dir, h.name+".bird")
	head := "router id " + id + ";\nprotocol device { scan time 1; }\nprotocol direct { ipv4; ipv6; }\n" +
		"protocol kernel k4 { merge paths yes; ipv4 { export where source = RTS_BGP; }; }\n" +
		"protocol kernel k6 { merge paths yes; ipv6 { export where source = RTS_BGP; }; }\n"
	must(h.l.t, os.WriteFile(file, []byte(head+conf), 0o600))
	return h.daemon("bird", "-f", "-c", file, "-s", file+".sock", "-P", file+".pid")
}

// birdc asks BIRD.
func (h *host) birdc(command string) string {
	out, _ := h.try(append([]string{"birdc", "-s", filepath.Join(h.l.dir, h.name+".bird.sock")}, strings.Fields(command)...)...)
	return out
}

// birdShows waits until BIRD's answer holds all texts.
func (h *host) birdShows(command string, texts ...string) {
	h.l.t.Helper()
	eventually(h.l.t, fmt.Sprintf("%s: %s shows %q", h.name, command, texts), func() error {
		out := h.birdc(command)
		for _, text := range texts {
			if !strings.Contains(out, text) {
				return errors.New(out)
			}
		}
		return nil
	})
}

// frr runs FRR's zebra and bgpd.
func (h *host) frr(conf string) (stop func()) {
	h.l.t.Helper()
	for _, p := range []string{"/usr/lib/frr/zebra", "/usr/lib/frr/bgpd"} {
		need(h.l.t, p)
	}
	dir := filepath.Join(h.l.dir, h.name+".frr")
	must(h.l.t, os.Mkdir(dir, 0o755))
	file := filepath.Join(dir, "frr.conf")
	must(h.l.t, os.WriteFile(file, []byte(conf), 0o600))
	account, err := user.Lookup("frr") // its daemons insist on not being root
	must(h.l.t, err)
	uid, _ := strconv.Atoi(account.Uid)
	must(h.l.t, errors.Join(os.Chown(dir, uid, -1), os.Chown(file, uid, -1), os.Chmod(h.l.dir, 0o755)))
	var stops []func()
	for _, d := range []string{"zebra", "bgpd"} {
		stops = append(stops, h.daemon("/usr/lib/frr/"+d, "-f", file, "-i", filepath.Join(dir, d+".pid"), "-z", filepath.Join(dir, "zserv"),
			"--vty_socket", dir, "-P", "0", "--log", "stdout"))
		eventually(h.l.t, d+" listens", func() error { _, err := os.Stat(filepath.Join(dir, d+".vty")); return err })
	}
	return func() {
		for _, stop := range slices.Backward(stops) {
			stop()
		}
	}
}

// vtysh asks FRR's bgpd, or tells it.
func (h *host) vtysh(commands ...string) string {
	argv := []string{"vtysh", "--vty_socket", filepath.Join(h.l.dir, h.name+".frr"), "-d", "bgpd"}
	for _, c := range commands {
		argv = append(argv, "-c", c)
	}
	out, _ := h.try(argv...)
	return out
}

func need(t testing.TB, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		missing(t, "needs "+program)
	}
}

// speaker is a Speaker in a process of its own.
type speaker struct {
	h    *host
	cmd  *exec.Cmd
	in   *json.Encoder
	out  *bufio.Reader
	log  *lines
	last order
	end  func()
}

func (h *host) speaker(o order) *speaker {
	h.l.t.Helper()
	s := &speaker{h: h, log: &lines{t: h.l.t, prefix: h.name}}
	s.start()
	s.tell(o)
	return s
}

func (s *speaker) start() {
	t := s.h.l.t
	t.Helper()
	s.cmd = exec.Command("nsenter", "--net="+s.h.path, "--", "/proc/self/exe")
	self, err := os.Executable()
	must(t, err)
	s.cmd.Args[len(s.cmd.Args)-1] = self
	s.cmd.Env = append(os.Environ(), "BGP_SPEAKER_DIR="+filepath.Join(s.h.l.dir, s.h.name+".state"))
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.cmd.Stderr = s.log
	in, err := s.cmd.StdinPipe()
	must(t, err)
	out, err := s.cmd.StdoutPipe()
	must(t, err)
	s.in, s.out = json.NewEncoder(in), bufio.NewReader(out)
	must(t, s.cmd.Start())
	var once sync.Once
	cmd := s.cmd
	s.end = func() { once.Do(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }) }
	t.Cleanup(s.end)
}

func (s *speaker) tell(o order) {
	s.h.l.t.Helper()
	s.last = o
	must(s.h.l.t, s.in.Encode(o))
}

// kill ends the process as nothing else can, and starts another.
func (s *speaker) kill() { s.end() }

func (s *speaker) restart() {
	s.h.l.t.Helper()
	s.kill()
	s.start()
	s.tell(s.last)
}

func (s *speaker) status() Status {
	s.h.l.t.Helper()
	must(s.h.l.t, s.in.Encode(order{Ask: true}))
	line, err := s.out.ReadBytes('\n')
	must(s.h.l.t, err)
	var st Status
	must(s.h.l.t, json.Unmarshal(line, &st))
	return st
}

// up waits until that many sessions are established.
func (s *speaker) up(n int) {
	s.h.l.t.Helper()
	eventually(s.h.l.t, fmt.Sprintf("%s has %d sessions", s.h.name, n), func() error {
		got := 0
		peers := s.status().Peers
		for _, p := range peers {
			if p.Up() {
				got++
			}
		}
		if got != n {
			return fmt.Errorf("it has %d: %+v", got, peers)
		}
		return nil
	})
}

// routes are the kernel's routes of a protocol (0: those of BIRD and zebra's BGP), as
// "dst via gw [gw…]".
func (h *host) routes(proto int) []string {
	h.l.t.Helper()
	var out []string
	must(h.l.t, h.ns.Do(func() error {
		list, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		for _, r := range list {
			p := int(r.Protocol)
			if p != proto && (proto != 0 || p != 12 && p != 186) {
				continue
			}
			f, _ := fromNetlink(&netlink.Route{Dst: r.Dst, Gw: r.Gw, LinkIndex: r.LinkIndex, MultiPath: r.MultiPath, Priority: metric, Type: unix.RTN_UNICAST})
			s := f.Prefix.String() + " via"
			for _, hop := range f.Hops {
				s += " " + hop.Gateway.String()
			}
			out = append(out, s)
		}
		return err
	}))
	slices.Sort(out)
	return out
}

// becomes waits until the kernel has exactly these routes of the protocol.
func (h *host) becomes(proto int, want ...string) {
	h.l.t.Helper()
	slices.Sort(want)
	eventually(h.l.t, fmt.Sprintf("%s has %q", h.name, want), func() error {
		if got := h.routes(proto); !slices.Equal(got, want) {
			return fmt.Errorf("it has %q", got)
		}
		return nil
	})
}

// reaches sends a packet to the other host and waits for its answer.
func (h *host) reaches(from string, o *host, to string) {
	h.l.t.Helper()
	server := o.echo(to)
	defer server.Close()
	eventually(h.l.t, h.name+" reaches "+to, func() error { return h.asks(from, server.LocalAddr()) })
}

// echo answers UDP packets on an address of the host.
func (h *host) echo(on string) net.PacketConn {
	h.l.t.Helper()
	var c net.PacketConn
	must(h.l.t, h.ns.Do(func() (err error) {
		c, err = net.ListenPacket("udp", net.JoinHostPort(on, "0"))
		return err
	}))
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			_, _ = c.WriteTo(buf[:n], from)
		}
	}()
	return c
}

// asks sends one packet from an address and wants it back.
func (h *host) asks(from string, to net.Addr) error {
	return h.ns.Do(func() error {
		c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, to.(*net.UDPAddr))
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 1))
		return err
	})
}

func node(name, addrs, cidrs string) Node {
	n := Node{Name: name, Labels: map[string]string{}, Annotations: map[string]string{}}
	for _, a := range strings.Fields(addrs) {
		n.Addrs = append(n.Addrs, netip.MustParseAddr(a))
	}
	for _, c := range strings.Fields(cidrs) {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(c))
	}
	return n
}

// lines logs what a process writes, and keeps it.
type lines struct {
	t      testing.TB
	prefix string

	mu  sync.Mutex
	all strings.Builder
}

// Write implements io.Writer.
func (w *lines) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all.Write(b)
	if testing.Verbose() {
		fmt.Fprintf(os.Stderr, "%s: %s", w.prefix, b)
	}
	return len(b), nil
}

func (w *lines) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all.String()
}
