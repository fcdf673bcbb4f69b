package policy

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/vk-metal/vk-metal/internal/testapi"
	"github.com/vk-metal/vk-metal/internal/testnet"
)

// enforced is a node whose Controller follows an API.
type enforced struct {
	*testnet.World
	t      *testing.T
	client *fake.Clientset
	c      *Controller

	mu         sync.Mutex
	restricted []netip.Addr
}

func newEnforced(t *testing.T) *enforced {
	e := &enforced{World: testnet.New(t), t: t, client: testapi.NewClientset()}
	e.namespace("shop", nil)
	return e
}

// start runs a Controller until the test, or the returned function, ends.
func (e *enforced) start() (stop func()) {
	e.t.Helper()
	c, err := New(Options{NodeName: testNode, PodLinkGroup: testnet.LinkGroup, HostNetNS: e.Path("node"), Client: e.client, Log: testnet.Log(e.t), Patience: 300 * time.Millisecond, Restricted: e.restrict})
	testnet.Must(e.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	e.c = c
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			e.t.Errorf("Run: %v", err)
		}
		testnet.Must(e.t, c.Close())
	}
	e.t.Cleanup(stop)
	return stop
}

func (e *enforced) restrict(list []netip.Addr) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.restricted = list
	return nil
}

// TestRestricted: who is under an egress policy is told, in both IP versions, until it is not.
func TestRestricted(t *testing.T) {
	e := newEnforced(t)
	one, two := e.pod("one"), e.pod("two")
	e.start()
	told := func(what string, want ...netip.Addr) {
		t.Helper()
		testnet.Eventually(t, what, func() error {
			e.mu.Lock()
			defer e.mu.Unlock()
			if !slices.Equal(e.restricted, want) {
				return fmt.Errorf("%v, want %v", e.restricted, want)
			}
			return nil
		})
	}
	e.policy("in", "{podSelector: {}, policyTypes: [Ingress]}")
	e.policy("out", "{podSelector: {matchLabels: {app: two}}, policyTypes: [Egress]}")
	told("one pod is restricted", two.V4, two.V6)
	e.policy("all", denyAll)
	told("both are", one.V4, two.V4, one.V6, two.V6)
	for _, name := range []string{"out", "all"} {
		testnet.Must(t, e.client.NetworkingV1().NetworkPolicies("shop").Delete(t.Context(), name, metav1.DeleteOptions{}))
	}
	told("nobody is")
}

func (e *enforced) namespace(name string, labels map[string]string) {
	e.t.Helper()
	_, err := e.client.CoreV1().Namespaces().Create(e.t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{})
	testnet.Must(e.t, err)
}

// object is a pod of this node as the API has it once it runs.
func object(name string, p *testnet.Pod) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", UID: types.UID(name), Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{NodeName: testNode},
	}
	pod.Status.PodIPs = []corev1.PodIP{{IP: p.V4.String()}, {IP: p.V6.String()}}
	return pod
}

func (e *enforced) pod(name string) *testnet.Pod {
	e.t.Helper()
	p := e.Pod()
	_, err := e.client.CoreV1().Pods("shop").Create(e.t.Context(), object(name, p), metav1.CreateOptions{})
	testnet.Must(e.t, err)
	return p
}

func (e *enforced) policy(name, spec string) {
	e.t.Helper()
	p := parsePolicies(e.t, fmt.Sprintf("metadata: {name: %s, namespace: shop}\nspec: %s", name, spec))[0]
	_, err := e.client.NetworkingV1().NetworkPolicies("shop").Create(e.t.Context(), p, metav1.CreateOptions{})
	testnet.Must(e.t, err)
}

// becomes waits until a connection ends as stated.
func (e *enforced) becomes(what string, from *testnet.Pod, network string, to netip.AddrPort, want string) {
	e.t.Helper()
	testnet.Eventually(e.t, what, func() error {
		if got := testnet.Outcome(from.NS, network, to); got != want {
			return fmt.Errorf("%s, want %s", got, want)
		}
		return nil
	})
}

const denyAll = "{podSelector: {}, policyTypes: [Ingress, Egress]}"

func TestEnforced(t *testing.T) {
	e := newEnforced(t)
	client, server := e.pod("client"), e.pod("server")
	e.Serve(server.NS, "server", 8080)
	e.start()
	for _, v := range []struct{ client, server, node netip.Addr }{{client.V4, server.V4, testnet.NodeIP4}, {client.V6, server.V6, testnet.NodeIP6}} {
		to := netip.AddrPortFrom(v.server, 8080)
		e.becomes("all is open without policies", client, "tcp", to, "server from "+v.client.String())
	}
	e.policy("deny", denyAll)
	for _, network := range []string{"tcp", "udp"} {
		for _, a := range []netip.Addr{server.V4, server.V6} {
			to := netip.AddrPortFrom(a, 8080)
			e.becomes("nothing is allowed", client, network, to, "silence")
			if got := testnet.OutcomeOnce(e.Node, network, to, "server"); !strings.HasPrefix(got, "server") {
				t.Errorf("the node cannot probe its own pod by %s: %s", network, got)
			}
			if got := testnet.OutcomeOnce(server.NS, network, to, "server"); !strings.HasPrefix(got, "server") {
				t.Errorf("a pod cannot reach itself by %s: %s", network, got)
			}
		}
	}
	e.policy("out", "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: server}}}]}]}")
	e.policy("in", "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 8080}]}]}")
	e.becomes("what both ends allow passes", client, "tcp", netip.AddrPortFrom(server.V4, 8080), "server from "+client.V4.String())
	if got := testnet.Outcome(client.NS, "udp", netip.AddrPortFrom(server.V4, 8080)); got != "silence" {
		t.Errorf("the other protocol passes: %s", got)
	}
	if e.Ruleset(); t.Failed() {
		t.Log(e.Ruleset())
	}
}

// TestAfterServices: policies see the pod's address and port, not the Service's.
func TestAfterServices(t *testing.T) {
	e := newEnforced(t)
	client, server := e.pod("client"), e.pod("server")
	e.Serve(server.NS, "server", 8080)
	e.In(e.Node, "nft add table ip nat", "nft add chain ip nat pre { type nat hook prerouting priority -101 ; }",
		"nft add rule ip nat pre ip daddr 10.96.0.1 tcp dport 80 dnat to "+server.V4.String()+":8080")
	e.policy("in", "{podSelector: {matchLabels: {app: server}}, ingress: [{ports: [{port: 80}]}]}")
	e.policy("out", "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}], ports: [{port: 8080}]}]}")
	e.start()
	service := netip.MustParseAddrPort("10.96.0.1:80")
	e.becomes("the Service's port is not the pod's", client, "tcp", service, "silence")
	e.policy("in2", "{podSelector: {matchLabels: {app: server}}, ingress: [{ports: [{port: 8080}]}]}")
	e.becomes("the pod's port is", client, "tcp", service, "server from "+client.V4.String())
}

// TestCut: what is established ends with its permission, from both ends; what is still
// allowed goes on.
func TestCut(t *testing.T) {
	e := newEnforced(t)
	client, server, other := e.pod("client"), e.pod("server"), e.pod("other")
	e.policy("in", "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}, {podSelector: {matchLabels: {app: other}}}]}]}")
	accepted := listen(t, server)
	e.start()
	testnet.Eventually(t, "the pod is admitted", func() error {
		return e.c.Admit(t.Context(), object("server", server), []netip.Addr{server.V4, server.V6})
	})
	cut, cutPeer := e.connect(client, server, accepted)
	kept, keptPeer := e.connect(other, server, accepted)
	for _, flow := range [][2]net.Conn{{cut, cutPeer}, {kept, keptPeer}} {
		if err := talk(flow[0], flow[1], time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	err := e.client.NetworkingV1().NetworkPolicies("shop").Delete(t.Context(), "in", metav1.DeleteOptions{})
	testnet.Must(t, err)
	e.policy("only-other", "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: other}}}]}]}")
	testnet.Eventually(t, "the flow is cut", func() error {
		if err := talk(cut, cutPeer, silence); err == nil {
			return fmt.Errorf("it goes on")
		}
		return nil
	})
	if err := talk(cutPeer, cut, silence); err == nil {
		t.Error("the server's side opens the flow again")
	}
	if err := talk(kept, keptPeer, time.Minute); err != nil {
		t.Errorf("a flow that is allowed was cut: %v", err)
	}
}

func listen(t *testing.T, p *testnet.Pod) <-chan net.Conn {
	t.Helper()
	accepted := make(chan net.Conn, 1)
	testnet.Must(t, p.NS.Do(func() error {
		l, err := net.Listen("tcp", ":9000")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				accepted <- c
			}
		}()
		return nil
	}))
	return accepted
}

func (e *enforced) connect(from, to *testnet.Pod, accepted <-chan net.Conn) (client, server net.Conn) {
	e.t.Helper()
	testnet.Must(e.t, from.NS.Do(func() (err error) {
		client, err = net.DialTimeout("tcp", netip.AddrPortFrom(to.V4, 9000).String(), time.Minute)
		return err
	}))
	server = <-accepted
	e.t.Cleanup(func() { _, _ = client.Close(), server.Close() })
	return client, server
}

// silence is how long nothing comes of a flow that is cut.
const silence = 500 * time.Millisecond

// talk sends a line one way and waits for it.
func talk(from, to net.Conn, patience time.Duration) error {
	if _, err := from.Write([]byte("hello\n")); err != nil {
		return err
	}
	_ = to.SetReadDeadline(time.Now().Add(patience))
	_, err := bufio.NewReaderSize(to, 16).ReadString('\n')
	return err
}

// TestHeals: what somebody else takes away comes back; at a restart nothing is ever open.
func TestHeals(t *testing.T) {
	e := newEnforced(t)
	client, server := e.pod("client"), e.pod("server")
	e.Serve(server.NS, "server", 8080)
	e.policy("deny", denyAll)
	stop := e.start()
	to := netip.AddrPortFrom(server.V4, 8080)
	e.becomes("nothing is allowed", client, "tcp", to, "silence")
	for _, harm := range []string{"nft flush ruleset", "nft delete table inet vk-metal-policy", "nft flush chain inet vk-metal-policy ingress-forward", "nft flush map inet vk-metal-policy ingress-ip"} {
		e.In(e.Node, harm)
		testnet.Eventually(t, "the rules come back after "+harm, func() error {
			if tb := e.c.table; !tb.same(e.c.engine.content) {
				return fmt.Errorf("they differ")
			}
			return nil
		})
		e.becomes("nothing is allowed after "+harm, client, "tcp", to, "silence")
	}
	stop()
	if got := testnet.Outcome(client.NS, "tcp", to); got != "silence" {
		t.Errorf("without an agent: %s", got)
	}
	e.start()
	for range 3 {
		if got := testnet.Outcome(client.NS, "tcp", to); got != "silence" {
			t.Errorf("while the agent starts: %s", got)
		}
	}
}

// TestAdmit: the rules for a pod are there when Admit returns, before the API knows its
// address.
func TestAdmit(t *testing.T) {
	e := newEnforced(t)
	e.policy("deny", denyAll)
	e.start()
	server, client := e.Pod(), e.Pod()
	e.Serve(server.NS, "server", 8080)
	to := netip.AddrPortFrom(server.V4, 8080)
	open := "server from " + client.V4.String()
	if got := testnet.OutcomeOnce(client.NS, "tcp", to, open); got != open {
		t.Fatalf("before: %s", got)
	}
	pod := object("server", server)
	pod.Status = corev1.PodStatus{}
	testnet.Eventually(t, "the pod is admitted", func() error {
		return e.c.Admit(t.Context(), pod, []netip.Addr{server.V4, server.V6})
	})
	if got := testnet.Outcome(client.NS, "tcp", to); got != "silence" {
		t.Errorf("an admitted pod: %s", got)
	}
	e.c.Release("server")
	e.becomes("a pod that is gone is not guarded", client, "tcp", to, open)
}

// TestAdmitFailsClosed: without the right to see policies no pod starts, and the error says
// what to do; a pod that earlier rules guard need not wait.
func TestAdmitFailsClosed(t *testing.T) {
	e := newEnforced(t)
	server := e.pod("server")
	e.policy("deny", denyAll)
	stop := e.start()
	ips := []netip.Addr{server.V4, server.V6}
	testnet.Eventually(t, "the pod is admitted", func() error { return e.c.Admit(t.Context(), object("server", server), ips) })
	stop()
	e.client.PrependReactor("list", "networkpolicies", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Group: networkingv1.GroupName, Resource: "networkpolicies"}, "", nil)
	})
	e.start()
	if err := e.c.Admit(t.Context(), object("server", server), ips); err != nil {
		t.Errorf("a pod whose rules are in the kernel waits: %v", err)
	}
	other := e.Pod()
	testnet.Eventually(t, "the error says what to do", func() error {
		err := e.c.Admit(t.Context(), object("other", other), []netip.Addr{other.V4})
		if err == nil {
			t.Fatal("a pod starts without policies")
		}
		if !strings.Contains(err.Error(), "network-policy-rbac.yaml") {
			return err
		}
		return nil
	})
}
