package services

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// baseService is a dual-stack Service of one port that cases mutate.
func baseService() *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.10", ClusterIPs: []string{"10.96.0.10"},
			Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	}
}

// at is an endpoint: "address[@node]" and then conditions and hints:
// -ready +serving +terminating node=x zone=x.
func at(text string) discoveryv1.Endpoint {
	words := strings.Fields(text)
	addr, node, _ := strings.Cut(words[0], "@")
	e := discoveryv1.Endpoint{Addresses: []string{addr}, Hints: &discoveryv1.EndpointHints{}}
	if node != "" {
		e.NodeName = &node
	}
	for _, w := range words[1:] {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "-ready":
			e.Conditions.Ready = ptr.To(false)
		case "-serving":
			e.Conditions.Serving = ptr.To(false)
		case "+serving":
			e.Conditions.Serving = ptr.To(true)
		case "+terminating":
			e.Conditions.Terminating = ptr.To(true)
		case "node":
			e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: value})
		case "zone":
			e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: value})
		}
	}
	return e
}

// slice has port 8080 for the unnamed Service port.
func slice(endpoints ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To(""), Port: ptr.To(int32(8080)), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
	for _, e := range endpoints {
		s.Endpoints = append(s.Endpoints, at(e))
		if strings.Contains(s.Endpoints[0].Addresses[0], ":") {
			s.AddressType = discoveryv1.AddressTypeIPv6
		}
	}
	return s
}

func TestResolve(t *testing.T) {
	two := []*discoveryv1.EndpointSlice{slice("10.0.1.1@node-a", "10.0.2.1@node-b")}
	localPolicy := func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
		s.Spec.Ports[0].NodePort = 30080
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
	}
	for _, c := range []struct {
		name   string
		change func(*corev1.Service)
		slices []*discoveryv1.EndpointSlice
		want   string
	}{
		{"plain", nil, two, "ns/web:80/tcp clusterIP=10.96.0.10:80 → [10.0.1.1:8080 10.0.2.1:8080]"},
		{"no endpoints", nil, nil, "ns/web:80/tcp clusterIP=10.96.0.10:80 → [] nobody"},
		{"not ready is left out", nil, []*discoveryv1.EndpointSlice{slice("10.0.1.1 -ready", "10.0.2.1")}, "ns/web:80/tcp clusterIP=10.96.0.10:80 → [10.0.2.1:8080]"},
		{
			"serving while ending only if there is nobody else", nil,
			[]*discoveryv1.EndpointSlice{slice("10.0.1.1 -ready +serving +terminating", "10.0.2.1 -ready -serving +terminating")},
			"ns/web:80/tcp clusterIP=10.96.0.10:80 → [10.0.1.1:8080]",
		},
		{
			"serving unless told otherwise", nil,
			[]*discoveryv1.EndpointSlice{slice("10.0.1.1 -ready +terminating", "10.0.2.1 -ready -serving +terminating", "10.0.3.1 -ready")},
			"ns/web:80/tcp clusterIP=10.96.0.10:80 → [10.0.1.1:8080]",
		},
		{
			"ready before serving while ending", nil,
			[]*discoveryv1.EndpointSlice{slice("10.0.1.1 -ready +serving +terminating", "10.0.2.1")},
			"ns/web:80/tcp clusterIP=10.96.0.10:80 → [10.0.2.1:8080]",
		},
		{
			"the same endpoint in two slices", nil,
			[]*discoveryv1.EndpointSlice{slice("10.0.1.1 -ready"), slice("10.0.1.1"), slice("10.0.1.1 -ready")},
			"ns/web:80/tcp clusterIP=10.96.0.10:80 → [10.0.1.1:8080]",
		},
		{
			"endpoints that no packet may go to", nil,
			[]*discoveryv1.EndpointSlice{slice("127.0.0.1", "0.0.0.0", "224.0.0.1", "::1", "fe80::1%eth0", "x", "10.0.1.1")},
			"ns/web:80/tcp clusterIP=10.96.0.10:80 → [10.0.1.1:8080]",
		},
		{"headless", func(s *corev1.Service) { s.Spec.ClusterIP = "None" }, two, ""},
		{"headless by label", func(s *corev1.Service) { s.Labels = map[string]string{corev1.IsHeadlessService: ""} }, two, ""},
		{"another proxy's", func(s *corev1.Service) { s.Labels = map[string]string{LabelServiceProxyName: "x"} }, two, ""},
		{"external name", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }, two, ""},
		{"hostile cluster IP", func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "127.0.0.1", nil }, two, ""},
		{
			"node port, external IP", func(s *corev1.Service) {
				s.Spec.Type, s.Spec.Ports[0].NodePort, s.Spec.ExternalIPs = corev1.ServiceTypeNodePort, 30080, []string{"192.0.2.1", "::1", "2001:db8::1"}
			}, two, "ns/web:80/tcp clusterIP=10.96.0.10:80 external=192.0.2.1:80 nodePort=0.0.0.0:30080 → [10.0.1.1:8080 10.0.2.1:8080]",
		},
		{
			"external policy Local", localPolicy, two,
			"ns/web:80/tcp clusterIP=10.96.0.10:80 external=192.0.2.1:80(local) nodePort=0.0.0.0:30080(local) → [10.0.1.1:8080 10.0.2.1:8080] here [10.0.1.1:8080]",
		},
		{
			"load balancer that proxies itself", func(s *corev1.Service) {
				localPolicy(s)
				s.Spec.Ports[0].NodePort = 0
				s.Status.LoadBalancer.Ingress[0].IPMode = ptr.To(corev1.LoadBalancerIPModeProxy)
			}, two, "ns/web:80/tcp clusterIP=10.96.0.10:80 → [10.0.1.1:8080 10.0.2.1:8080]",
		},
		{
			"internal policy Local", func(s *corev1.Service) {
				s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
			}, two,
			"ns/web:80/tcp clusterIP=10.96.0.10:80(local) → [10.0.1.1:8080 10.0.2.1:8080] here [10.0.1.1:8080]",
		},
		{
			"source ranges, and the node itself where it is in one", func(s *corev1.Service) {
				localPolicy(s)
				s.Spec.Ports[0].NodePort = 0
				s.Spec.LoadBalancerSourceRanges = []string{"198.51.100.7/24", "2001:db8::/32", " 203.0.113.0/24"}
			}, two, "ns/web:80/tcp clusterIP=10.96.0.10:80 external=192.0.2.1:80(local)[198.51.100.0/24 203.0.113.0/24 192.0.2.1/32] → [10.0.1.1:8080 10.0.2.1:8080] here [10.0.1.1:8080]",
		},
		{
			"source ranges of the other IP version let nobody in", func(s *corev1.Service) {
				localPolicy(s)
				s.Spec.Ports[0].NodePort, s.Spec.LoadBalancerSourceRanges = 0, []string{"2001:db8::/32"}
			}, two, "ns/web:80/tcp clusterIP=10.96.0.10:80 external=192.0.2.1:80(local)[] → [10.0.1.1:8080 10.0.2.1:8080] here [10.0.1.1:8080]",
		},
		{
			"affinity", func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }, two,
			"ns/web:80/tcp clusterIP=10.96.0.10:80 → [10.0.1.1:8080 10.0.2.1:8080] affinity 3h0m0s",
		},
		{
			"hints: zone", nil,
			[]*discoveryv1.EndpointSlice{slice("10.0.1.1 zone=z1", "10.0.2.1 zone=z2", "10.0.3.1 zone=z3 zone=z1")},
			"ns/web:80/tcp clusterIP=10.96.0.10:80 → [10.0.1.1:8080 10.0.3.1:8080]",
		},
		{
			"hints: node before zone", nil,
			[]*discoveryv1.EndpointSlice{slice("10.0.1.1 zone=z1 node=node-a", "10.0.2.1 zone=z1 node=node-b")},
			"ns/web:80/tcp clusterIP=10.96.0.10:80 → [10.0.1.1:8080]",
		},
		{
			"hints: no endpoint for this node, then the zone's", nil,
			[]*discoveryv1.EndpointSlice{slice("10.0.1.1 zone=z1 node=node-b", "10.0.2.1 zone=z2 node=node-b")},
			"ns/web:80/tcp clusterIP=10.96.0.10:80 → [10.0.1.1:8080]",
		},
		{
			"hints: one is missing, so none counts", nil,
			[]*discoveryv1.EndpointSlice{slice("10.0.1.1 zone=z1", "10.0.2.1")},
			"ns/web:80/tcp clusterIP=10.96.0.10:80 → [10.0.1.1:8080 10.0.2.1:8080]",
		},
		{
			"dual stack", func(s *corev1.Service) {
				s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, "fd00:96::10")
				s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080
			}, append(two, slice("fd00::1@node-a")),
			"ns/web:80/tcp clusterIP=10.96.0.10:80 nodePort=0.0.0.0:30080 → [10.0.1.1:8080 10.0.2.1:8080]\n" +
				"ns/web:80/tcp clusterIP=[fd00:96::10]:80 nodePort=[::]:30080 → [[fd00::1]:8080]",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := baseService()
			if c.change != nil {
				c.change(s)
			}
			node := NodeFacts{Name: "node-a", Zone: "z1", Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")}}
			if got := show(Resolve(s, c.slices, node, nil)); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func show(ports []Port) string {
	var lines []string
	for _, p := range ports {
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "\n")
}

// TestHealthCountsPods: a pod with two addresses is one endpoint for a load balancer.
func TestHealthCountsPods(t *testing.T) {
	s := baseService()
	s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal, 32123
	four := slice("10.0.1.1@node-a", "10.0.1.2@node-a", "10.0.1.3@node-a -ready", "10.0.2.1@node-b")
	six := slice("fd00::1@node-a", "fd00::2@node-a", "fd00::3@node-a -ready", "fd00::4@node-b")
	for _, list := range [][]*discoveryv1.EndpointSlice{{four}, {six}, {four, six}, {four, four}} {
		if got := checkOf(s, list, NodeFacts{Name: "node-a"}); got != (check{32123, 2}) {
			t.Errorf("%d slices: %+v", len(list), got)
		}
	}
}

// TestNamedPorts: a named target port has another number in each slice, and a Service's
// ports each take their own.
func TestNamedPorts(t *testing.T) {
	s := baseService()
	s.Spec.Ports = []corev1.ServicePort{{Name: "a", Port: 80}, {Name: "b", Port: 81, Protocol: corev1.ProtocolUDP}}
	one, two := slice("10.0.1.1"), slice("10.0.2.1")
	port := func(name string, number int32, proto corev1.Protocol) discoveryv1.EndpointPort {
		return discoveryv1.EndpointPort{Name: &name, Port: &number, Protocol: &proto}
	}
	one.Ports = []discoveryv1.EndpointPort{port("a", 8080, "TCP"), port("b", 53, "UDP"), port("b", 54, "TCP"), {Name: ptr.To("a")}}
	two.Ports = []discoveryv1.EndpointPort{port("a", 9090, "TCP"), port("a", 70000, "TCP")}
	want := "ns/web:a/tcp clusterIP=10.96.0.10:80 → [10.0.1.1:8080 10.0.2.1:9090]\nns/web:b/udp clusterIP=10.96.0.10:81 → [10.0.1.1:53]"
	if got := show(Resolve(s, []*discoveryv1.EndpointSlice{one, two}, NodeFacts{Name: "node-a"}, nil)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestSlotsStay: endpoints keep their slots when others come and go.
func TestSlotsStay(t *testing.T) {
	s, node := baseService(), NodeFacts{Name: "node-a"}
	var ports []Port
	for _, c := range []struct{ endpoints, want string }{
		{"10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4", "[10.0.0.1:8080 10.0.0.2:8080 10.0.0.3:8080 10.0.0.4:8080]"},
		{"10.0.0.2 10.0.0.3 10.0.0.4", "[10.0.0.4:8080 10.0.0.2:8080 10.0.0.3:8080]"},
		{"10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.0", "[10.0.0.4:8080 10.0.0.2:8080 10.0.0.3:8080 10.0.0.0:8080]"},
		{"10.0.0.9 10.0.0.3 10.0.0.4 10.0.0.0", "[10.0.0.4:8080 10.0.0.9:8080 10.0.0.3:8080 10.0.0.0:8080]"},
		{"10.0.0.0", "[10.0.0.0:8080]"},
	} {
		ports = Resolve(s, []*discoveryv1.EndpointSlice{slice(strings.Fields(c.endpoints)...)}, node, ports)
		if got := show(ports); !strings.HasSuffix(got, c.want) {
			t.Errorf("with %s: %s, want %s", c.endpoints, got, c.want)
		}
	}
}
