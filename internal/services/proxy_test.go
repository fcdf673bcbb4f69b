package services

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/internal/testapi"
	"github.com/vk-metal/vk-metal/internal/testnet"
)

// cluster is an API with a Proxy that follows it.
type cluster struct {
	*world
	client *fake.Clientset
	proxy  *Proxy
}

// proxied runs a Proxy in the node until the test, or the returned function, ends.
func (w *world) proxied() *cluster {
	w.t.Helper()
	c := &cluster{world: w, client: testapi.NewClientset()}
	w.t.Cleanup(c.start())
	return c
}

func (c *cluster) start() (stop func()) {
	c.t.Helper()
	ready, stop := c.launch(func(*Proxy) {})
	<-ready
	return stop
}

func (c *cluster) launch(change func(*Proxy)) (ready <-chan struct{}, stop func()) {
	c.t.Helper()
	factory := informers.NewSharedInformerFactory(c.client, 0)
	p, err := New(Options{
		Node: NodeFacts{Name: testnet.NodeName, Addresses: []netip.Addr{testnet.NodeIP4, testnet.NodeIP6}}, PodLinkGroup: testnet.LinkGroup, HostNetNS: c.Path("node"),
		Services: factory.Core().V1().Services(), Slices: factory.Discovery().V1().EndpointSlices(), Log: testnet.Log(c.t),
	})
	testnet.Must(c.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done, isReady := make(chan error, 1), make(chan struct{}, 1)
	change(p)
	factory.Start(ctx.Done())
	go func() { done <- p.Run(ctx, func() { signal(isReady) }) }()
	c.proxy = p
	stopped := false
	return isReady, func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("Run: %v", err)
		}
		factory.Shutdown()
		testnet.Must(c.t, p.Close())
	}
}

// apply makes or replaces a Service.
func (c *cluster) apply(s *corev1.Service) {
	c.t.Helper()
	services := c.client.CoreV1().Services(s.Namespace)
	if _, err := services.Update(c.t.Context(), s, metav1.UpdateOptions{}); err != nil {
		_, err = services.Create(c.t.Context(), s, metav1.CreateOptions{})
		testnet.Must(c.t, err)
	}
}

// endpoints makes or replaces the Service "web"'s slice.
func (c *cluster) endpoints(list ...string) {
	c.t.Helper()
	s := slice(list...)
	s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: ptr.To("dns"), Port: ptr.To(int32(8080)), Protocol: ptr.To(corev1.ProtocolUDP)})
	slices := c.client.DiscoveryV1().EndpointSlices(s.Namespace)
	if _, err := slices.Update(c.t.Context(), s, metav1.UpdateOptions{}); err != nil {
		_, err = slices.Create(c.t.Context(), s, metav1.CreateOptions{})
		testnet.Must(c.t, err)
	}
}

// becomes polls until the testnet.Outcome is as wanted.
func (c *cluster) becomes(what string, from *testnet.Pod, network, to, want string) {
	c.t.Helper()
	testnet.Eventually(c.t, what+": "+want, func() error {
		if got := testnet.Outcome(from.NS, network, netip.MustParseAddrPort(to)); got != want {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
}

// withUDP is the Service "web" with a second port for UDP.
func withUDP() *corev1.Service {
	s := baseService()
	s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP})
	return s
}

func TestProxyFollowsTheAPI(t *testing.T) {
	c := newWorld(t).proxied()
	client, one, two := c.Pod(), c.Pod(), c.Pod()
	c.Serve(one.NS, "one", 8080)
	c.Serve(two.NS, "two", 8080)
	from := " from " + client.V4.String()
	at := func(p *testnet.Pod) string { return p.V4.String() + "@" + testnet.NodeName }
	web := "10.96.0.10:80"
	c.apply(withUDP())
	c.becomes("a Service without endpoints", client, "tcp", web, "refused")
	c.endpoints(at(one))
	c.becomes("its first endpoint", client, "tcp", web, "one"+from)
	c.endpoints(at(two))
	c.becomes("another endpoint", client, "tcp", web, "two"+from)
	c.endpoints(at(two), at(one)+" -ready")
	c.becomes("a second that is not ready", client, "tcp", web, "two"+from)
	c.In(c.Node, "nft flush ruleset")
	c.becomes("somebody emptied nftables", client, "tcp", web, "two"+from)
	c.In(c.Node, "nft delete table ip vk-metal-services")
	c.becomes("somebody deleted our table", client, "tcp", web, "two"+from)
	c.In(c.Node, "nft flush map ip vk-metal-services slots")
	c.becomes("somebody emptied a map", client, "tcp", web, "two"+from)
	s := withUDP()
	s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.96.0.11", []string{"10.96.0.11"}
	c.apply(s)
	c.becomes("another cluster IP", client, "tcp", "10.96.0.11:80", "two"+from)
	s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "example.org"
	c.apply(s)
	testnet.Eventually(t, "nothing of it is left", func() error { return c.lacks("10.96.0.11", "10.96.0.10") })
	s = withUDP()
	c.apply(s)
	c.becomes("and back", client, "tcp", web, "two"+from)
	testnet.Must(t, c.client.CoreV1().Services("ns").Delete(t.Context(), "web", metav1.DeleteOptions{}))
	testnet.Eventually(t, "nothing of it is left", func() error { return c.lacks("10.96.0.10", "10.244.1.") })
}

func (c *cluster) lacks(words ...string) error {
	rules := c.Ruleset()
	for _, w := range words {
		if strings.Contains(rules, w) {
			return fmt.Errorf("the rules still have %s", w)
		}
	}
	return nil
}

// TestOthersTablesStay: what others have in nftables is not touched, ever.
func TestOthersTablesStay(t *testing.T) {
	c := newWorld(t)
	c.In(c.Node, "nft add table ip others", "nft add chain ip others c { type filter hook forward priority 0; }",
		"nft add rule ip others c ip saddr 192.0.2.1 counter drop", "nft add table inet vk-metal-pods")
	before := c.Ruleset()
	p := c.proxied()
	p.apply(baseService())
	p.endpoints("10.0.0.1")
	testnet.Eventually(t, "rules are there", func() error {
		if strings.Contains(p.Ruleset(), "10.96.0.10 . tcp . 80") {
			return nil
		}
		return fmt.Errorf("no rules")
	})
	p.In(p.Node, "nft delete table ip vk-metal-services")
	testnet.Eventually(t, "they were put back", func() error {
		if strings.Contains(p.Ruleset(), "10.96.0.10 . tcp . 80") {
			return nil
		}
		return fmt.Errorf("no rules")
	})
	for _, line := range strings.Split(before, "\n") {
		if !strings.Contains(p.Ruleset(), line) {
			t.Errorf("lost %q", line)
		}
	}
}

// TestUDPClientsMoveOn: a client that sends from one port all the time reaches the new
// endpoint, and one that started before there was any, too; one whose endpoint ends stays with
// it until it serves no more.
func TestUDPClientsMoveOn(t *testing.T) {
	c := newWorld(t).proxied()
	client, one, two := c.Pod(), c.Pod(), c.Pod()
	c.Serve(one.NS, "one", 8080)
	c.Serve(two.NS, "two", 8080)
	c.apply(withUDP())
	var conn net.Conn
	testnet.Must(t, client.NS.Do(func() (err error) {
		pc, err := net.ListenPacket("udp4", ":4000")
		if err == nil {
			conn = &steadyClient{pc, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.96.0.10:53"))}
		}
		return err
	}))
	defer conn.Close()
	answers := func(want string) func() error {
		return func() error {
			_, _ = conn.Write([]byte("?"))
			b := make([]byte, 64)
			_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			n, err := conn.Read(b)
			if got := string(b[:n]); !strings.HasPrefix(got, want) {
				return fmt.Errorf("%q, %w", got, err)
			}
			return nil
		}
	}
	_, _ = conn.Write([]byte("?")) // before there is an endpoint
	c.endpoints(one.V4.String())
	testnet.Eventually(t, "the first endpoint answers", answers("one"))
	c.endpoints(two.V4.String())
	testnet.Eventually(t, "the second answers", answers("two"))
	c.endpoints(one.V4.String(), two.V4.String())
	for range 5 {
		testnet.Eventually(t, "the client stays with its endpoint", answers("two"))
	}
	three := c.Pod()
	c.Serve(three.NS, "three", 8080)
	c.endpoints(three.V4.String(), two.V4.String()+" -ready +serving +terminating")
	c.becomes("new clients", client, "tcp", "10.96.0.10:80", "three from "+client.V4.String())
	for range 20 {
		testnet.Must(t, answers("two")()) // serves while it ends
	}
	c.endpoints(three.V4.String(), two.V4.String()+" -ready -serving +terminating")
	testnet.Eventually(t, "the third answers", answers("three"))
}

// steadyClient sends from one socket that no ICMP error closes.
type steadyClient struct {
	net.PacketConn
	to net.Addr
}

func (s *steadyClient) Write(b []byte) (int, error) { return s.WriteTo(b, s.to) }
func (s *steadyClient) RemoteAddr() net.Addr        { return s.to }
func (s *steadyClient) Read(b []byte) (int, error) {
	n, _, err := s.ReadFrom(b)
	return n, err
}

// stuck is a client of a Service of four endpoints, pod0 to pod3, with affinity: mine is the
// one that it has stuck to.
func (c *cluster) stuck() (client *testnet.Pod, list []string, to netip.AddrPort, mine string) {
	c.t.Helper()
	client = c.Pod()
	for i := range 4 {
		p := c.Pod()
		c.Serve(p.NS, fmt.Sprintf("pod%d", i), 8080)
		list = append(list, p.V4.String())
	}
	s := withUDP()
	s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	c.apply(s)
	c.endpoints(list...)
	to = netip.MustParseAddrPort("10.96.0.10:80")
	testnet.Eventually(c.t, "somebody answers", func() error {
		a, err := testnet.Ask(client.NS, "tcp", to)
		mine = a.Who
		return err
	})
	return client, list, to, mine
}

// TestAffinity: a client stays with its endpoint while others come and go, and is free
// again when affinity is switched off.
func TestAffinity(t *testing.T) {
	c := newWorld(t).proxied()
	client, list, to, mine := c.stuck()
	stays := func(what string) {
		t.Helper()
		for range 12 {
			if a, err := testnet.AskOnce(client.NS, "tcp", to); err != nil || a.Who != mine {
				t.Fatalf("%s: %s answers (%v), not %s\n%s", what, a.Who, err, mine, c.Ruleset())
			}
		}
	}
	stays("at first")
	var index int
	_, _ = fmt.Sscanf(mine, "pod%d", &index)
	others := append(append([]string{}, list[:index]...), list[index+1:]...)
	c.endpoints(list[index], others[0])
	testnet.Eventually(t, "the others are gone", func() error { return c.lacks(others[1]+" . 8080", "10.0.0.1") })
	stays("fewer endpoints")
	c.endpoints(list...)
	stays("all again")
	c.Ruleset()
	c.endpoints(others...)
	testnet.Eventually(t, "another answers", func() error {
		a, err := testnet.Ask(client.NS, "tcp", to)
		if err == nil && a.Who == mine {
			err = fmt.Errorf("still %s", mine)
		}
		return err
	})
	c.apply(withUDP())
	seen := map[string]bool{}
	testnet.Eventually(t, "all answer without affinity", func() error {
		a, err := testnet.Ask(client.NS, "tcp", to)
		if seen[a.Who] = true; err == nil && len(seen) < 3 {
			err = fmt.Errorf("only %v", seen)
		}
		return err
	})
	if err := c.lacks("affinity-"); err != nil {
		t.Error(err)
	}
}

// TestUnreadyAtOnce: a pod of this node that is not ready gets no connections although its
// slice still has it, unless the Service wants it so.
func TestUnreadyAtOnce(t *testing.T) {
	c := newWorld(t).proxied()
	client, one, two := c.Pod(), c.Pod(), c.Pod()
	c.Serve(one.NS, "one", 8080)
	c.Serve(two.NS, "two", 8080)
	s := baseService()
	c.apply(s)
	slice := slice(one.V4.String(), two.V4.String())
	for i := range slice.Endpoints {
		slice.Endpoints[i].NodeName = ptr.To(testnet.NodeName)
	}
	_, err := c.client.DiscoveryV1().EndpointSlices(slice.Namespace).Create(t.Context(), slice, metav1.CreateOptions{})
	testnet.Must(t, err)
	const to = "10.96.0.10:80"
	both := func(what string) {
		t.Helper()
		seen := map[string]bool{}
		testnet.Eventually(t, what, func() error {
			a, err := testnet.Ask(client.NS, "tcp", netip.MustParseAddrPort(to))
			if seen[a.Who] = true; err != nil || len(seen) < 2 {
				return fmt.Errorf("only %v (%w)", seen, err)
			}
			return nil
		})
	}
	both("both answer")
	c.proxy.SetReady([]netip.Addr{one.V4}, false)
	testnet.Eventually(t, "one gets nothing", func() error { return c.lacks(one.V4.String() + " . 8080") })
	for range 8 {
		if a, err := testnet.AskOnce(client.NS, "tcp", netip.MustParseAddrPort(to)); err != nil || a.Who != "two" {
			t.Fatalf("%s answers (%v)", a.Who, err)
		}
	}
	c.proxy.SetReady([]netip.Addr{one.V4}, true)
	both("both answer again")
	c.proxy.SetReady([]netip.Addr{one.V4, two.V4}, false)
	c.becomes("nobody is left", client, "tcp", to, "refused")
	s.Spec.PublishNotReadyAddresses = true
	c.apply(s)
	both("both answer when those that are not ready are wanted")
}

// TestAffinityOverRestarts: a client stays with its endpoint when the agent restarts, and
// when the whole is put in place again.
func TestAffinityOverRestarts(t *testing.T) {
	c := &cluster{world: newWorld(t), client: testapi.NewClientset()}
	stop := c.start()
	client, _, to, mine := c.stuck()
	for i := range 5 {
		stop()
		stop = c.start()
		if a, err := testnet.AskOnce(client.NS, "tcp", to); err != nil || a.Who != mine {
			t.Fatalf("restart %d: %s answers (%v), not %s\n%s", i, a.Who, err, mine, c.Ruleset())
		}
	}
	c.Ruleset()
	stop()
}

// TestRestart: a proxy that starts takes over without a failed connection, and forgets
// what went while it was away.
func TestRestart(t *testing.T) {
	c := &cluster{world: newWorld(t), client: testapi.NewClientset()}
	stop := c.start()
	client, one := c.Pod(), c.Pod()
	c.Serve(one.NS, "one", 8080)
	c.apply(baseService())
	gone := baseService()
	gone.Name, gone.Spec.ClusterIP, gone.Spec.ClusterIPs = "gone", "10.96.0.99", []string{"10.96.0.99"}
	c.apply(gone)
	c.endpoints(one.V4.String())
	want := "one from " + client.V4.String()
	c.becomes("before", client, "tcp", "10.96.0.10:80", want)
	stop()
	testnet.Must(t, c.client.CoreV1().Services("ns").Delete(t.Context(), "gone", metav1.DeleteOptions{}))
	done, failed := make(chan struct{}), make(chan string, 1000)
	go func() {
		defer close(failed)
		for {
			if got := testnet.OutcomeOnce(client.NS, "tcp", netip.MustParseAddrPort("10.96.0.10:80"), want); got != want {
				failed <- got
			}
			select {
			case <-done:
				return
			default:
			}
		}
	}()
	for range 3 {
		stop = c.start()
		stop()
	}
	stop = c.start()
	defer stop()
	close(done)
	for f := range failed {
		t.Errorf("a connection failed: %s", f)
	}
	if err := c.lacks("10.96.0.99"); err != nil {
		t.Error(err)
	}
}

// TestHealth asks as a load balancer does.
func TestHealth(t *testing.T) {
	c := newWorld(t).proxied()
	get := func(url string) (out string, err error) {
		err = c.Node.Do(func() error {
			b, err := exec.Command("curl", "-s", "-i", "--max-time", "2", url).Output()
			out = string(b)
			return err
		})
		return out, err
	}
	has := func(url string, words ...string) {
		t.Helper()
		testnet.Eventually(t, url+" has "+strings.Join(words, ", "), func() error {
			out, err := get(url)
			for _, w := range words {
				if !strings.Contains(out, w) {
					return fmt.Errorf("%s, %w", out, err)
				}
			}
			return err
		})
	}
	has("http://127.0.0.1:10256/healthz", "200 OK", `"nodeEligible":true`)
	has("http://127.0.0.1:10249/proxyMode", "200 OK", "nftables")
	s := baseService()
	s.Spec.Type, s.Spec.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
	s.Spec.HealthCheckNodePort = 32123
	c.apply(s)
	has("http://127.0.0.1:32123/", "503", "X-Load-Balancing-Endpoint-Weight: 0", `"localEndpoints":0`, `"namespace":"ns"`)
	c.endpoints("10.0.0.1@node-a", "10.0.0.2@node-a", "10.0.0.3@node-b")
	has("http://127.0.0.1:32123/", "200 OK", "X-Load-Balancing-Endpoint-Weight: 2", `"serviceProxyHealthy":true`)
	c.endpoints("10.0.0.1@node-a -ready +serving +terminating")
	has("http://127.0.0.1:32123/", "503", "X-Load-Balancing-Endpoint-Weight: 0")
	s.Spec.HealthCheckNodePort = 0
	c.apply(s)
	testnet.Eventually(t, "the port is closed", func() error {
		if out, err := get("http://127.0.0.1:32123/"); err == nil {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	c.proxy.SetNode(NodeFacts{Name: testnet.NodeName, Leaving: true})
	has("http://127.0.0.1:10256/healthz", "503", `"nodeEligible":false`)
	has("http://127.0.0.1:10256/livez", "200 OK")
}

// TestRivalComesAndGoes: a kube-proxy finds no rules of ours, and ours come back after it.
func TestRivalComesAndGoes(t *testing.T) {
	c := &cluster{world: newWorld(t), client: testapi.NewClientset()}
	var here atomic.Bool
	here.Store(true)
	c.apply(baseService())
	stop := c.start()
	stop()
	_, stop = c.launch(func(p *Proxy) {
		p.rival, p.rivalEvery = func() (int, bool) { return 17, here.Load() }, 10*time.Millisecond
	})
	defer stop()
	is := func(rules bool) func() error {
		return func() error {
			if got := strings.Contains(c.Ruleset(), "10.96.0.10"); got != rules {
				return fmt.Errorf("there are rules: %t", got)
			}
			return nil
		}
	}
	testnet.Eventually(t, "rules from before are gone", is(false))
	for range 2 {
		here.Store(false)
		testnet.Eventually(t, "there are rules again", is(true))
		here.Store(true)
		testnet.Eventually(t, "rules are gone", is(false))
	}
}

// TestForbidden: without the right to see Services the proxy is off, says so once, and
// leaves the rules as they are; with it, it works.
func TestForbidden(t *testing.T) {
	c := &cluster{world: newWorld(t), client: testapi.NewClientset()}
	c.apply(baseService())
	stop := c.start()
	stop()
	var allowed atomic.Bool
	c.client.PrependReactor("list", "endpointslices", func(clienttesting.Action) (bool, runtime.Object, error) {
		if allowed.Load() {
			return false, nil, nil
		}
		return true, nil, apierrors.NewForbidden(discoveryv1.Resource("endpointslices"), "", nil)
	})
	ready, stop := c.launch(func(*Proxy) {})
	defer stop()
	testnet.Eventually(t, "it is told", func() error {
		c.proxy.mu.Lock()
		defer c.proxy.mu.Unlock()
		if !c.proxy.told {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	if !strings.Contains(c.Ruleset(), "10.96.0.10") {
		t.Error("the rules are gone")
	}
	allowed.Store(true)
	<-ready
}
