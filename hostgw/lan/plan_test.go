package lan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
)

var (
	lan4 = netip.MustParsePrefix("192.0.2.0/24")
	lan6 = netip.MustParsePrefix("2001:db8::/64")
)

func testNode(name string) Node {
	return Node{Name: name, Subnets: []netip.Prefix{lan4, lan6}, Ready: true}
}

func addrs(text string) (out []netip.Addr) {
	for _, a := range strings.Fields(text) {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// one plans a single address with these nodes.
func one(t *testing.T, nodes []Node, services ...Service) Address {
	t.Helper()
	plan := Plan(Inputs{Nodes: nodes, Services: services})
	if len(plan) != 1 {
		t.Fatalf("%+v", plan)
	}
	return plan[0]
}

func TestWhoMayAnnounce(t *testing.T) {
	web := Service{Name: "d/web", Addrs: addrs("192.0.2.50"), Nodes: []string{"x"}}
	local := web
	local.Local, local.Nodes = true, []string{"b", "x"}
	other := Service{Name: "d/other", Addrs: web.Addrs, Local: true, Nodes: []string{"c"}}
	change := func(change func(b *Node)) []Node {
		n := testNode("b")
		change(&n)
		return []Node{n}
	}
	for name, c := range map[string]struct {
		nodes    []Node
		services []Service
		want     string
	}{
		"any node by policy Cluster": {[]Node{testNode("b")}, []Service{web}, "b"},
		"not ready":                  {change(func(n *Node) { n.Ready = false }), []Service{web}, ""},
		"excluded":                   {change(func(n *Node) { n.Excluded = true }), []Service{web}, ""},
		"does not announce":          {change(func(n *Node) { n.Subnets = nil }), []Service{web}, ""},
		"on another LAN":             {change(func(n *Node) { n.Subnets = []netip.Prefix{netip.MustParsePrefix("192.0.3.0/24")} }), []Service{web}, ""},
		"policy Local":               {[]Node{testNode("a"), testNode("b"), testNode("c")}, []Service{local}, "b"},
		"Local without one":          {[]Node{testNode("a")}, []Service{local}, ""},
		"a shared address goes where most of its Services are": {[]Node{testNode("a"), testNode("c")}, []Service{web, other}, "c"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := one(t, c.nodes, c.services...); got.Node != c.want || got.Standby != "" {
				t.Errorf("%+v, want %q", got, c.want)
			}
		})
	}
	t.Run("nothing ready", func(t *testing.T) {
		web.Nodes = nil
		if plan := Plan(Inputs{Nodes: []Node{testNode("a")}, Services: []Service{web}}); len(plan) > 0 {
			t.Errorf("%+v", plan)
		}
	})
	t.Run("a node's address", func(t *testing.T) {
		n := testNode("a")
		n.Addrs = addrs("192.0.2.50")
		web.Nodes = []string{"x"}
		if got := one(t, []Node{n, testNode("b")}, web); got.Node != "" || !strings.Contains(got.Refused, "node a") {
			t.Errorf("%+v", got)
		}
	})
}

// TestRendezvous: the order of nodes does not matter, the standby is who takes over, and a
// node that goes moves only what it had.
func TestRendezvous(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfNDistinct(rapid.StringMatching("[a-z]{1,8}"), 1, 12, rapid.ID).Draw(t, "nodes")
		a := netip.AddrFrom4([4]byte{192, 0, 2, rapid.Byte().Draw(t, "last")})
		first, second := rendezvous(a, names)
		mixed := rapid.Permutation(names).Draw(t, "mixed")
		if f, s := rendezvous(a, mixed); f != first || s != second {
			t.Fatalf("%v: %s %s; %v: %s %s", names, first, second, mixed, f, s)
		}
		leaves := rapid.SampledFrom(names).Draw(t, "leaves")
		rest := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == leaves })
		switch now, _ := rendezvous(a, rest); {
		case leaves == first && now != second:
			t.Fatalf("%s had %s; %s took over instead of %s", leaves, a, now, second)
		case leaves != first && now != first:
			t.Fatalf("%s went, and %s moved from %s to %s", leaves, a, first, now)
		}
	})
}

// TestShares: addresses are spread over the nodes.
func TestShares(t *testing.T) {
	var names []string
	for i := range 10 {
		names = append(names, fmt.Sprintf("node-%d", i))
	}
	count := map[string]int{}
	for i := range 1000 {
		first, _ := rendezvous(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), names)
		count[first]++
	}
	for _, n := range names {
		if count[n] < 60 || count[n] > 140 {
			t.Errorf("%s has %d of 1000 addresses: %v", n, count[n], count)
		}
	}
}

func TestSubnetsText(t *testing.T) {
	list := []netip.Prefix{lan4, lan6}
	if got := ParseSubnets(FormatSubnets(list)); !slices.Equal(got, list) {
		t.Errorf("%v", got)
	}
	if got := ParseSubnets("192.0.2.7/24, nonsense,"); !slices.Equal(got, list[:1]) {
		t.Errorf("%v", got)
	}
	if got := ParseSubnets(""); got != nil {
		t.Errorf("%v", got)
	}
}

func TestServiceOf(t *testing.T) {
	no, proxy := false, corev1.LoadBalancerIPModeProxy
	x, y := "x", "y"
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: "web"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ExternalIPs: []string{"192.0.2.66"}, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{
			{IP: "192.0.2.50"}, {IP: "127.0.0.1"}, {IP: "192.0.2.51", IPMode: &proxy}, {Hostname: "h"}, {IP: "2001:db8::50"},
		}}},
	}
	slice := &discoveryv1.EndpointSlice{Endpoints: []discoveryv1.Endpoint{
		{NodeName: &y}, {NodeName: &x}, {NodeName: &x}, {NodeName: new(string), Conditions: discoveryv1.EndpointConditions{Ready: &no}},
	}}
	got, ok := ServiceOf(s, []*discoveryv1.EndpointSlice{slice})
	if want := "{d/web [192.0.2.50 2001:db8::50] true [x y]}"; !ok || fmt.Sprint(got) != want {
		t.Errorf("%v %v, want %s", got, ok, want)
	}
	s.Spec.Type = corev1.ServiceTypeNodePort
	if _, ok := ServiceOf(s, nil); ok {
		t.Error("a NodePort Service is announced")
	}
}
