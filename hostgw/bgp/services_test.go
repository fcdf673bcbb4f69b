package bgp

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func TestServiceOf(t *testing.T) {
	slice := func(node string, ready *bool) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{Endpoints: []discoveryv1.Endpoint{{NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: ready}}}}
	}
	for name, tc := range map[string]struct {
		change func(*corev1.Service)
		slices []*discoveryv1.EndpointSlice
		want   string
	}{
		"here":          {nil, []*discoveryv1.EndpointSlice{slice("a", nil)}, "cluster [10.96.0.1] external [198.51.100.9] lb [198.51.100.1] local false ready true here true"},
		"elsewhere":     {nil, []*discoveryv1.EndpointSlice{slice("b", ptr.To(true))}, "cluster [10.96.0.1] external [198.51.100.9] lb [198.51.100.1] local false ready true here false"},
		"none is ready": {nil, []*discoveryv1.EndpointSlice{slice("a", ptr.To(false))}, "cluster [10.96.0.1] external [198.51.100.9] lb [198.51.100.1] local false ready false here false"},
		"local":         {func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }, nil, "cluster [10.96.0.1] external [198.51.100.9] lb [198.51.100.1] local true ready false here false"},
		"behind a proxy": {func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress[0].IPMode = ptr.To(corev1.LoadBalancerIPModeProxy)
		}, nil, "cluster [10.96.0.1] external [198.51.100.9] lb [] local false ready false here false"},
		"no LoadBalancer any more": {func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP }, nil, "cluster [10.96.0.1] external [198.51.100.9] lb [] local false ready false here false"},
		"nonsense": {func(s *corev1.Service) {
			s.Spec.ExternalIPs = []string{"127.0.0.1", "0.0.0.0", "224.0.0.1", "x", "fe80::1"}
		}, nil, "cluster [10.96.0.1] external [] lb [198.51.100.1] local false ready false here false"},
		"headless": {func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }, nil, "nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "s"}, Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"}, ExternalIPs: []string{"198.51.100.9"},
			}}
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.1"}, {Hostname: "lb.example"}}
			if tc.change != nil {
				tc.change(s)
			}
			v, ok := ServiceOf(s, tc.slices, "a")
			got := fmt.Sprintf("cluster %v external %v lb %v local %v ready %v here %v", v.ClusterIPs, v.ExternalIPs, v.LoadBalancerIPs, v.LocalExternal, v.Ready, v.Here)
			if !ok {
				got = "nothing"
			}
			if got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

// TestServiceAddresses: a router's kernel follows Services, endpoints and annotations, and
// no session is reset by that.
func TestServiceAddresses(t *testing.T) {
	l := newLab(t)
	tor := l.host("tor")
	conf := ""
	var hosts []*host
	var orders []order
	for i, name := range []string{"a", "b"} {
		h := l.host(name)
		tor.join(h, fmt.Sprintf("172.16.%d.1/24", i), fmt.Sprintf("172.16.%d.2/24", i))
		conf += fmt.Sprintf("protocol bgp %s { local 172.16.%d.1 as 65001; neighbor 172.16.%d.2 as 64512; graceful restart on; ipv4 { import all; export none; }; }\n", name, i, i)
		hosts = append(hosts, h)
		orders = append(orders, order{
			Self:   node(name, fmt.Sprintf("172.16.%d.2", i), fmt.Sprintf("10.244.%d.0/24", i)),
			Config: fmt.Sprintf("asn: 64512\nadvertise: {podCIDRs: false, services: [LoadBalancerIP]}\npeers:\n- {name: tor, address: 172.16.%d.1, asn: 65001}\n", i),
		})
	}
	tor.bird("172.16.0.1", conf)
	cluster := Service{Name: "x/cluster", LoadBalancerIPs: addrs("198.51.100.1"), Ready: true}
	twin := Service{Name: "x/twin", LoadBalancerIPs: addrs("198.51.100.1"), Ready: true}
	local := Service{Name: "x/local", LoadBalancerIPs: addrs("198.51.100.2"), LocalExternal: true, Ready: true}
	here := local
	here.Here = true
	orders[0].Services, orders[1].Services = []Service{cluster, twin, here}, []Service{cluster, twin, local}
	var speakers []*speaker
	for i, h := range hosts {
		speakers = append(speakers, h.speaker(orders[i]))
	}
	tell := func(a, b []Service) {
		orders[0].Services, orders[1].Services = a, b
		for i, s := range speakers {
			s.tell(orders[i])
		}
	}
	everywhere, onA, onB := "198.51.100.1/32 via 172.16.0.2 172.16.1.2", "198.51.100.2/32 via 172.16.0.2", "198.51.100.2/32 via 172.16.1.2"
	tor.becomes(12, everywhere, onA)
	since := sessions(speakers)

	tell([]Service{twin, local}, []Service{twin, here}) // one of two has gone; the endpoint has moved
	tor.becomes(12, everywhere, onB)
	orders[1].Self.Annotations[AnnotationWithdraw] = WithdrawServices
	tell([]Service{twin, here}, []Service{twin, here})
	tor.becomes(12, "198.51.100.1/32 via 172.16.0.2", onA)
	delete(orders[1].Self.Annotations, AnnotationWithdraw)
	orders[0].Self.Labels[labelExclude] = ""
	tell([]Service{twin, here}, []Service{twin, here})
	tor.becomes(12, "198.51.100.1/32 via 172.16.1.2", onB)
	twin.Ready = false
	tell([]Service{twin}, []Service{twin})
	tor.becomes(12)
	if now := sessions(speakers); !slices.Equal(now, since) {
		t.Errorf("sessions were reset: up since %v, then %v", since, now)
	}
}

func sessions(speakers []*speaker) (since []string) {
	for _, s := range speakers {
		for _, p := range s.status().Peers {
			since = append(since, p.State+p.Since.String())
		}
	}
	return since
}
