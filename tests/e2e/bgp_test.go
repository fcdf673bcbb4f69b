package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/rig"
)

const (
	// birdProtocol marks routes that BIRD put into the kernel.
	birdProtocol = 12
	// udpPort is where the Deployment's pods answer UDP.
	udpPort = 8081
	// balanced is a LoadBalancer address that nothing but BGP leads to.
	balanced = "198.51.100.10"
)

const torHead = `router id %s;
protocol device { scan time 1; }
protocol direct { ipv4; }
protocol kernel { merge paths yes; ipv4 { export where source = RTS_BGP; }; }
`

const torPeer = `protocol bgp node%d {
  local %s as 65001; neighbor %s as 64512; graceful restart on; connect retry time 1; error wait time 1, 2;
  ipv4 { import all; export none; };
}
`

const nodeBGP = `apiVersion: vk-metal.io/v1alpha1
kind: BGPConfig
asn: 64512
advertise: {services: [LoadBalancerIP]}
peers:
- {name: tor, address: %s, asn: 65001, connectRetry: 1s}
`

// tor is a top-of-rack router: BIRD in a network namespace on the nodes' LAN, the only one
// there that could know where pods are.
type tor struct {
	*env
	at     rig.Endpoint
	socket string
}

// startTor runs the router and has all nodes peer with it.
func (e *env) startTor() *tor {
	e.Helper()
	at, err := e.c.Rig.AddEndpoint(e.Context(), "tor", "")
	if err != nil {
		e.Fatal(err)
	}
	r := &tor{env: e, at: at, socket: filepath.Join(e.TempDir(), "bird.sock")}
	config := fmt.Sprintf(torHead, at.V4)
	for i, machine := range e.c.Machines() {
		config += fmt.Sprintf(torPeer, i, at.V4, machine.V4)
	}
	file := filepath.Join(filepath.Dir(r.socket), "bird.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		e.Fatal(err)
	}
	bird, err := e.c.Rig.StartProcess(e.Context(), rig.ProcessSpec{
		Name: "tor", Endpoint: at.Name, Argv: []string{"bird", "-f", "-c", file, "-s", r.socket, "-P", r.socket + ".pid"},
	})
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := bird.Stop(ctx, 10*time.Second); err != nil {
			e.Errorf("stop BIRD: %v", err)
		}
	})
	for i, machine := range e.c.Machines() {
		if err := machine.WriteFile(e.Context(), "/etc/vk-metal/bgp.yaml", fmt.Appendf(nil, nodeBGP, at.V4), 0o644); err != nil {
			e.Fatal(err)
		}
		e.configure(machine.Name, "network: {routing: Both, bgpConfig: /etc/vk-metal/bgp.yaml}")
		r.session(i, true)
	}
	return r
}

// session waits until BIRD has, or has not, a session with the i-th node.
func (r *tor) session(i int, up bool) {
	r.Helper()
	r.eventually(time.Minute, func() string {
		out, err := exec.CommandContext(r.Context(), "birdc", "-s", r.socket, "show", "protocols", "node"+strconv.Itoa(i)).CombinedOutput()
		if got := strings.Contains(string(out), "Established"); err != nil || got != up {
			return fmt.Sprintf("session %d is up: %t (%v)\n%s", i, got, err, out)
		}
		return ""
	})
}

// hops are the next hops of the kernel's route to dst that BIRD put there, sorted.
func (r *tor) hops(dst netip.Prefix) []netip.Addr {
	r.Helper()
	var found []netip.Addr
	var done sync.WaitGroup
	var err error
	r.enter(&done, r.at.NetnsPath, func() {
		_, to, _ := net.ParseCIDR(dst.String())
		var routes []netlink.Route
		routes, err = netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Dst: to, Protocol: birdProtocol}, netlink.RT_FILTER_DST|netlink.RT_FILTER_PROTOCOL)
		for _, route := range routes {
			paths := route.MultiPath
			if len(paths) == 0 {
				paths = []*netlink.NexthopInfo{{Gw: route.Gw}}
			}
			for _, path := range paths {
				hop, _ := netip.AddrFromSlice(path.Gw.To4())
				found = append(found, hop)
			}
		}
	})
	done.Wait()
	if err != nil {
		r.Fatalf("read the router's routes: %v", err)
	}
	slices.SortFunc(found, netip.Addr.Compare)
	return found
}

// leads waits until the router's kernel sends packets for dst to these nodes and no other.
func (r *tor) leads(dst netip.Prefix, nodes ...*rig.Machine) {
	r.Helper()
	want := []netip.Addr{}
	for _, node := range nodes {
		want = append(want, node.V4)
	}
	slices.SortFunc(want, netip.Addr.Compare)
	r.eventually(time.Minute, func() string {
		if got := r.hops(dst); !slices.Equal(got, want) {
			return fmt.Sprintf("the router's kernel has %s by %v, not by %v", dst, got, want)
		}
		return ""
	})
}

// podCIDR is the IPv4 range of a node.
func (r *tor) podCIDR(name string) netip.Prefix {
	r.Helper()
	node, err := r.c.Client.CoreV1().Nodes().Get(r.Context(), name, metav1.GetOptions{})
	if err != nil {
		r.Fatal(err)
	}
	for _, cidr := range node.Spec.PodCIDRs {
		if p := netip.MustParsePrefix(cidr); p.Addr().Is4() {
			return p
		}
	}
	r.Fatalf("node %s has no IPv4 podCIDR: %v", name, node.Spec.PodCIDRs)
	return netip.Prefix{}
}

// ask has the router itself ask a pod, or a Service, by UDP.
func (r *tor) ask(address, question string) (answer string, err error) {
	var done sync.WaitGroup
	r.enter(&done, r.at.NetnsPath, func() {
		var conn net.Conn
		if conn, err = (&net.Dialer{}).DialContext(r.Context(), "udp", address); err != nil {
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err = conn.Write([]byte(question)); err != nil {
			return
		}
		buf := make([]byte, 512)
		var n int
		n, err = conn.Read(buf)
		answer = string(buf[:n])
	})
	done.Wait()
	return answer, err
}

// datagrams is a running flow: numbered questions on one socket, and which were answered.
type datagrams struct {
	conn net.Conn
	quit chan struct{}
	done sync.WaitGroup

	mu       sync.Mutex
	sent     int
	answered map[int]bool
}

// flow has the router send a pod a datagram every 20 ms until the test ends.
func (r *tor) flow(pod *corev1.Pod) *datagrams {
	r.Helper()
	f := &datagrams{quit: make(chan struct{}), answered: map[int]bool{}}
	var entered sync.WaitGroup
	var err error
	r.enter(&entered, r.at.NetnsPath, func() {
		f.conn, err = (&net.Dialer{}).DialContext(r.Context(), "udp", net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(udpPort)))
	})
	if entered.Wait(); err != nil {
		r.Fatal(err)
	}
	f.done.Go(f.send)
	f.done.Go(f.receive)
	r.Cleanup(func() { f.stop(); _ = f.conn.Close(); f.done.Wait() })
	return f
}

func (f *datagrams) send() {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-f.quit:
			return
		case <-tick.C:
		}
		f.mu.Lock()
		n := f.sent
		f.sent++
		f.mu.Unlock()
		_, _ = fmt.Fprintf(f.conn, "echo %d", n) // what could not be sent is lost as well
	}
}

func (f *datagrams) receive() {
	buf := make([]byte, 512)
	for {
		size, err := f.conn.Read(buf)
		if err != nil && !isICMP(err) {
			return
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(buf[:size]))); err == nil {
			f.mu.Lock()
			f.answered[n] = true
			f.mu.Unlock()
		}
	}
}

// isICMP says whether a socket was told that a datagram did not arrive.
func isICMP(err error) bool {
	return strings.Contains(err.Error(), "refused") || strings.Contains(err.Error(), "unreachable") || strings.Contains(err.Error(), "no route")
}

func (f *datagrams) stop() {
	select {
	case <-f.quit:
	default:
		close(f.quit)
	}
}

// goesOn waits until something that is sent from now on is answered.
func (r *tor) goesOn(f *datagrams) {
	r.Helper()
	f.mu.Lock()
	now := f.sent
	f.mu.Unlock()
	r.eventually(30*time.Second, func() string {
		f.mu.Lock()
		defer f.mu.Unlock()
		for n := now + 5; n < f.sent; n++ {
			if f.answered[n] {
				return ""
			}
		}
		return "nothing is answered any more"
	})
}

// lostNone ends the flow: every datagram must have its answer.
func (r *tor) lostNone(f *datagrams) {
	r.Helper()
	f.stop()
	var sent int
	r.eventually(30*time.Second, func() string {
		f.mu.Lock()
		defer f.mu.Unlock()
		if sent = f.sent; len(f.answered) < sent {
			return fmt.Sprintf("%d of %d datagrams have no answer", sent-len(f.answered), sent)
		}
		return ""
	})
	r.Logf("none of %d datagrams was lost", sent)
}

// stayDead keeps systemd from starting a node's killed agent until it is told to.
func (r *tor) stayDead(node *rig.Machine) {
	r.Helper()
	const dropIn = "/run/systemd/system/vk-metal.service.d/stay-dead.conf"
	r.on(node.Name, "sh", "-c", "mkdir -p $(dirname "+dropIn+") && printf '[Service]\\nRestart=no\\n' >"+dropIn+" && systemctl daemon-reload")
	r.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := node.Run(ctx, "sh", "-c", "rm -f "+dropIn+" && systemctl daemon-reload && systemctl start vk-metal.service"); err != nil {
			r.Errorf("let the agent be started again: %v", err)
		}
	})
}

// balance gives a Service of the pods' UDP port the address, as a controller would.
func (r *tor) balance() {
	r.Helper()
	s := r.service("balanced", func(spec *corev1.ServiceSpec) {
		spec.Type, spec.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
		spec.LoadBalancerClass = ptr.To("example.com/none") // no controller of the cluster takes it
		spec.Ports[0].Protocol, spec.Ports[0].TargetPort.IntVal = corev1.ProtocolUDP, udpPort
	})
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: balanced}}
	if _, err := r.c.Client.CoreV1().Services(r.ns).UpdateStatus(r.Context(), s, metav1.UpdateOptions{}); err != nil {
		r.Fatal(err)
	}
}

// answers waits until the address answers the router's question.
func (r *tor) answers(address, question string) (answer string) {
	r.Helper()
	r.eventually(time.Minute, func() string {
		var err error
		if answer, err = r.ask(address, question); err != nil {
			return fmt.Sprintf("the router asks %s: %v", address, err)
		}
		return ""
	})
	return answer
}

// TestTopOfRack: a router learns by BGP where pods and a LoadBalancer address are, and
// reaches both by its kernel's routes. A killed agent costs no datagram of a running flow;
// maintenance and the machine's shutdown withdraw, although the router would keep routes
// for two minutes.
func TestTopOfRack(t *testing.T) {
	e := setupMore(t)
	e.deploy(2)
	r := e.startTor()
	nodes := e.c.Machines()
	byNode := map[string]*corev1.Pod{}
	for _, pod := range e.web() {
		byNode[pod.Spec.NodeName] = &pod
	}
	if len(byNode) != len(nodes) {
		t.Fatalf("the scheduler put the two pods on %d node, each was to have one", len(byNode))
	}
	for _, node := range nodes {
		r.leads(r.podCIDR(node.Name), node)
		pod := byNode[node.Name]
		if who := r.answers(net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(udpPort)), "hostname"); strings.TrimSpace(who) != pod.Name {
			t.Errorf("%s answers for %s", who, pod.Name)
		}
	}
	address := netip.PrefixFrom(netip.MustParseAddr(balanced), 32)
	r.balance()
	r.leads(address, nodes...)
	if client := r.answers(balanced+":80", "clientip"); !strings.HasPrefix(client, r.at.V4.String()+":") {
		t.Errorf("the pods behind the LoadBalancer address see %q, not the router %s", client, r.at.V4)
	}
	node, other := nodes[0], nodes[1]

	r.stayDead(node)
	f := r.flow(byNode[node.Name])
	r.goesOn(f)
	r.on(node.Name, "systemctl", "kill", "--signal=KILL", "vk-metal.service")
	r.session(0, false)
	r.goesOn(f)
	r.leads(r.podCIDR(node.Name), node)
	r.leads(address, nodes...)
	r.on(node.Name, "systemctl", "reset-failed", "vk-metal.service")
	r.on(node.Name, "systemctl", "start", "vk-metal.service")
	r.session(0, true)
	r.goesOn(f)
	r.lostNone(f)

	r.on(node.Name, "vk-metal", "bgp", "withdraw")
	r.leads(r.podCIDR(node.Name))
	r.leads(address, other)
	r.session(0, true) // the session stays
	r.on(node.Name, "vk-metal", "bgp", "announce")
	r.leads(r.podCIDR(node.Name), node)
	r.leads(address, nodes...)

	if err := node.Stop(e.Context()); err != nil {
		t.Fatal(err)
	}
	r.leads(r.podCIDR(node.Name)) // within a minute: graceful restart would keep it for two
	r.leads(address, other)
	if err := node.Start(e.Context()); err != nil {
		t.Fatal(err)
	}
	if err := node.WaitBooted(e.Context()); err != nil {
		t.Fatal(err)
	}
	if err := e.c.WaitNodeReady(e.Context(), node.Name); err != nil {
		t.Fatal(err)
	}
	r.leads(r.podCIDR(node.Name), node)
}
