package dnscache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/vk-metal/vk-metal/internal/policy"
	"github.com/vk-metal/vk-metal/internal/services"
	"github.com/vk-metal/vk-metal/internal/testapi"
	"github.com/vk-metal/vk-metal/internal/testnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	cluster4 = netip.MustParseAddr("10.96.0.10")
	cluster6 = netip.MustParseAddr("fd00:96::a")
)

// world is a node with a pod that asks and one that is the cluster's DNS, led to by the
// service proxy.
type world struct {
	*testing.T
	api         *fake.Clientset
	w           *testnet.World
	client, dns *testnet.Pod
	asked       atomic.Int64
	down        atomic.Bool
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, w: testnet.New(t)}
	w.client, w.dns = w.w.Pod(), w.w.Pod()
	w.api = testapi.NewClientset(w.objects()...)
	w.proxy()
	handler := dns.HandlerFunc(func(rw dns.ResponseWriter, m *dns.Msg) {
		w.asked.Add(1)
		if w.down.Load() {
			return
		}
		_ = rw.WriteMsg(w.zone(m))
	})
	for _, network := range []string{"udp", "tcp"} {
		s := &dns.Server{Addr: ":53", Net: network, Handler: handler}
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		ended := make(chan error, 1)
		testnet.Must(t, w.dns.NS.Do(func() (err error) { // sockets are opened by this thread
			if network == "tcp" {
				s.Listener, err = net.Listen(network, s.Addr)
				return err
			}
			s.PacketConn, err = net.ListenPacket(network, s.Addr)
			return err
		}))
		go func() { ended <- s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			_ = s.Shutdown()
			<-ended
		})
	}
	return w
}

// objects are the Service of the cluster's DNS, with its endpoints, and the client.
func (w *world) objects() []runtime.Object {
	udp, tcp, node := corev1.ProtocolUDP, corev1.ProtocolTCP, testnet.NodeName
	port := int32(53)
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "kube-system", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "dns"}}
	}
	names := []string{"dns", "dns-tcp"}
	slice := func(kind discoveryv1.AddressType, a netip.Addr) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{
			ObjectMeta: meta(strings.ToLower(string(kind))), AddressType: kind,
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{a.String()}, NodeName: &node}},
			Ports:     []discoveryv1.EndpointPort{{Name: &names[0], Port: &port, Protocol: &udp}, {Name: &names[1], Port: &port, Protocol: &tcp}},
		}
	}
	pod := func(name string, p *testnet.Pod) *corev1.Pod {
		out := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: name, UID: types.UID(name), Labels: map[string]string{"app": name}}}
		out.Spec.NodeName, out.Status.PodIPs = testnet.NodeName, []corev1.PodIP{{IP: p.V4.String()}, {IP: p.V6.String()}}
		return out
	}
	return []runtime.Object{
		&corev1.Service{ObjectMeta: meta("dns"), Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: cluster4.String(), ClusterIPs: []string{cluster4.String(), cluster6.String()},
			Ports: []corev1.ServicePort{{Name: names[0], Port: 53, Protocol: udp}, {Name: names[1], Port: 53, Protocol: tcp}},
		}},
		slice(discoveryv1.AddressTypeIPv4, w.dns.V4), slice(discoveryv1.AddressTypeIPv6, w.dns.V6),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system"}}, pod("client", w.client), pod("dns", w.dns),
	}
}

// proxy runs the service proxy until the test ends.
func (w *world) proxy() {
	w.Helper()
	factory := informers.NewSharedInformerFactory(w.api, 0)
	p, err := services.New(services.Options{
		Node: services.NodeFacts{Name: testnet.NodeName, Addresses: []netip.Addr{testnet.NodeIP4, testnet.NodeIP6}}, PodLinkGroup: testnet.LinkGroup,
		HostNetNS: w.w.Path("node"), Services: factory.Core().V1().Services(), Slices: factory.Discovery().V1().EndpointSlices(), Log: testnet.Log(w),
	})
	testnet.Must(w, err)
	ctx, cancel := context.WithCancel(context.Background())
	done, ready := make(chan error, 1), make(chan struct{})
	factory.Start(ctx.Done())
	go func() { done <- p.Run(ctx, sync.OnceFunc(func() { close(ready) })) }()
	w.Cleanup(func() {
		cancel()
		testnet.Must(w, <-done)
		factory.Shutdown()
		testnet.Must(w, p.Close())
	})
	<-ready
}

// zone knows names by their first label.
func (w *world) zone(m *dns.Msg) *dns.Msg {
	r := new(dns.Msg).SetReply(m)
	name := m.Question[0].Name
	switch label, _, _ := strings.Cut(name, "."); label {
	case "none":
		r.Rcode = dns.RcodeNameError
		rr, _ := dns.NewRR("example. 30 IN SOA ns. h. 1 2 3 4 30")
		r.Ns = append(r.Ns, rr)
	case "big":
		for i := range 100 {
			rr, _ := dns.NewRR(fmt.Sprintf("%s 30 IN A 192.0.2.%d", name, i+1))
			r.Answer = append(r.Answer, rr)
		}
	case "brief":
		rr, _ := dns.NewRR(name + " 1 IN A 192.0.2.1")
		r.Answer = append(r.Answer, rr)
	default:
		rr, _ := dns.NewRR(name + " 30 IN A 192.0.2.1")
		r.Answer = append(r.Answer, rr)
	}
	return r
}

// start runs a cache; stop is what the kernel sees of a kill: the sockets are closed, the
// rules stay.
func (w *world) start() (c *Cache, stop func()) {
	w.Helper()
	c, err := New(Options{HostNetNS: w.w.Path("node"), Servers: []netip.Addr{cluster4, cluster6}, PodLinkGroup: testnet.LinkGroup, Log: testnet.Log(w)})
	testnet.Must(w, err)
	ctx, cancel := context.WithCancel(w.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		testnet.Must(w, <-done)
	})
	w.Cleanup(stop)
	w.eventually("questions come here", func() error {
		_, err := w.ask("udp", cluster4, "ready.example.", 0)
		if err == nil && c.cache.entries.Len() == 0 {
			err = errors.New("they do not")
		}
		return err
	})
	return c, stop
}

func (w *world) eventually(what string, cond func() error) {
	w.Helper()
	testnet.Eventually(w, what, cond)
}

// ask asks as a pod does, from a new socket.
func (w *world) ask(network string, server netip.Addr, name string, size uint16) (*dns.Msg, error) {
	m := query(name)
	if size > 0 {
		m.SetEdns0(size, false)
	}
	var r *dns.Msg
	err := w.client.NS.Do(func() (err error) {
		c := dns.Client{Net: network, Timeout: 15 * time.Second}
		r, _, err = c.Exchange(m, netip.AddrPortFrom(server, 53).String())
		return err
	})
	return r, err
}

func (w *world) must(network string, server netip.Addr, name string) *dns.Msg {
	w.Helper()
	r, err := w.ask(network, server, name, 1232)
	testnet.Must(w, err)
	return r
}

// upstream says how many queries reached the cluster's DNS meanwhile.
func (w *world) upstream(do func()) int64 {
	before := w.asked.Load()
	do()
	return w.asked.Load() - before
}

// cached is nil when the cache answers for a name that it has. A question may be lost while
// rules change.
func (w *world) cached() (err error) {
	if n := w.upstream(func() { _, err = w.ask("udp", cluster4, "name.example.", 0) }); err == nil && n != 0 {
		err = errors.New("the cluster's DNS was asked")
	}
	return err
}

// TestCache: the second question is answered here, over either protocol and IP version.
func TestCache(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.w.In(w.w.Node, "conntrack -F") // before the start they passed it
	for i, server := range []netip.Addr{cluster4, cluster6} {
		name := fmt.Sprintf("name-%d.example.", i)
		if n := w.upstream(func() { w.must("udp", server, name) }); n != 1 {
			t.Fatalf("%s: the first question reached the cluster's DNS %d times", server, n)
		}
		for _, network := range []string{"udp", "tcp"} {
			n := w.upstream(func() {
				if r := w.must(network, server, strings.ToUpper(name)); len(r.Answer) != 1 || r.Question[0].Name != strings.ToUpper(name) || r.Answer[0].Header().Ttl > 30 {
					t.Errorf("%s %s: %v", network, server, r)
				}
			})
			if n != 0 {
				t.Errorf("%s %s: the next question reached the cluster's DNS, too", network, server)
			}
		}
	}
	if n := w.upstream(func() {
		for range 3 {
			if r := w.must("udp", cluster4, "none.example."); r.Rcode != dns.RcodeNameError {
				t.Error(r)
			}
		}
	}); n != 1 {
		t.Errorf("a name that is not there was asked for %d times", n)
	}
	small, err := w.ask("udp", cluster4, "big.example.", 0)
	testnet.Must(t, err)
	small.Compress = true // as it came
	if !small.Truncated || small.Len() > dns.MinMsgSize {
		t.Errorf("%d bytes, truncated %v", small.Len(), small.Truncated)
	}
	if r := w.must("tcp", cluster4, "big.example."); len(r.Answer) != 100 || r.Truncated {
		t.Errorf("%d answers by TCP", len(r.Answer))
	}
	if out := w.w.In(w.w.Node, "conntrack -L -p udp --dport 53"); strings.Contains(out, w.client.V4.String()) {
		t.Errorf("the connection tracking knows queries:\n%s", out)
	}
}

// TestGone: with the agent gone queries go their usual way at once, although the rules are
// still there; when it is back it answers again.
func TestGone(t *testing.T) {
	w := newWorld(t)
	for round := range 3 {
		_, stop := w.start()
		name := fmt.Sprintf("name-%d.example.", round)
		w.must("udp", cluster4, name)
		if n := w.upstream(func() { w.must("udp", cluster4, name) }); n != 0 {
			t.Errorf("round %d: not answered here", round)
		}
		stop()
		if out := w.w.Ruleset(); !strings.Contains(out, "table inet "+tableName) {
			t.Fatal("the rules went with the agent: this proves nothing")
		}
		for _, server := range []netip.Addr{cluster4, cluster6} {
			for _, network := range []string{"udp", "tcp"} {
				if n := w.upstream(func() { w.must(network, server, name) }); n != 1 {
					t.Errorf("%s %s: %d questions reached the cluster's DNS", network, server, n)
				}
			}
		}
	}
	testnet.Must(t, Remove(w.w.Path("node")))
	testnet.Must(t, Remove(w.w.Path("node")))
	if out := w.w.Ruleset(); strings.Contains(out, tableName) {
		t.Errorf("left behind:\n%s", out)
	}
	for _, list := range []string{"ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all"} {
		if out := w.w.In(w.w.Node, list); strings.Contains(out, strconv.Itoa(routeTable)) {
			t.Errorf("left behind:\n%s", out)
		}
	}
	w.must("udp", cluster4, "name.example.")
}

// TestStale: while the cluster's DNS does not answer, what was true is told.
func TestStale(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.must("udp", cluster4, "brief.example.")
	w.down.Store(true)
	w.eventually("it asks again after a second", func() error {
		if n := w.upstream(func() {
			if r := w.must("udp", cluster4, "brief.example."); len(r.Answer) != 1 {
				t.Fatal(r)
			}
		}); n == 0 {
			return errors.New("it does not")
		}
		return nil
	})
	if r := w.must("udp", cluster4, "other.example."); r.Rcode != dns.RcodeServerFailure {
		t.Error(r)
	}
}

// TestDirect: pods under an egress policy ask the cluster's DNS themselves.
func TestDirect(t *testing.T) {
	w := newWorld(t)
	c, _ := w.start()
	w.must("udp", cluster4, "name.example.")
	testnet.Must(t, c.SetDirect([]netip.Addr{w.client.V4, w.client.V6}))
	if n := w.upstream(func() { w.must("udp", cluster4, "name.example.") }); n != 1 {
		t.Error("the cache answered")
	}
	testnet.Must(t, c.SetDirect(nil))
	if n := w.upstream(func() { w.must("udp", cluster4, "name.example.") }); n != 0 {
		t.Error("the cache does not answer any more")
	}
}

// answered says whether a question is answered soon.
func (w *world) answered() bool {
	return nil == w.client.NS.Do(func() error {
		client := dns.Client{Net: "udp", Timeout: 300 * time.Millisecond}
		_, _, err := client.Exchange(query("name.example."), netip.AddrPortFrom(cluster4, 53).String())
		return err
	})
}

// TestPolicy: a pod whose egress is restricted asks through the policy: what it may not ask
// the cluster's DNS, the cache does not tell it either.
func TestPolicy(t *testing.T) {
	w := newWorld(t)
	c, _ := w.start()
	p, err := policy.New(policy.Options{
		NodeName: testnet.NodeName, PodLinkGroup: testnet.LinkGroup, HostNetNS: w.w.Path("node"), Client: w.api, Log: testnet.Log(t), Restricted: c.SetDirect,
	})
	testnet.Must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() {
		cancel()
		testnet.Must(t, <-done)
		testnet.Must(t, p.Close())
	}()
	w.must("udp", cluster4, "name.example.")
	selected := metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}}
	policies := w.api.NetworkingV1().NetworkPolicies("kube-system")
	deny := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "deny"},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: selected, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}},
	}
	_, err = policies.Create(t.Context(), deny, metav1.CreateOptions{})
	testnet.Must(t, err)
	w.eventually("the pod gets no answer, although the cache has it", func() error {
		if w.answered() {
			return errors.New("it does")
		}
		return nil
	})
	allow := deny.DeepCopy()
	allow.Name = "dns"
	allow.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "dns"}}}}}}
	_, err = policies.Create(t.Context(), allow, metav1.CreateOptions{})
	testnet.Must(t, err)
	w.eventually("the pod asks the cluster's DNS, which it may", func() error {
		if !w.answered() {
			return errors.New("no answer")
		}
		return nil
	})
	if n := w.upstream(func() { w.must("tcp", cluster4, "name.example.") }); n != 1 {
		t.Error("the cache answered")
	}
	for _, name := range []string{"deny", "dns"} {
		testnet.Must(t, policies.Delete(t.Context(), name, metav1.DeleteOptions{}))
	}
	w.eventually("the cache answers again", w.cached)
}

// TestFlushed: somebody flushes all rules.
func TestFlushed(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.must("udp", cluster4, "name.example.")
	w.w.In(w.w.Node, "nft delete table inet "+tableName)
	w.eventually("the rules are back", w.cached)
}
