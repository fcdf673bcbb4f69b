package e2e

import (
	"fmt"
	"math/rand/v2"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

// spec is a Service with its endpoints as seen from the node that is asked: each side has
// one of its own, with the nodes the other way round.
type spec struct {
	Name                string
	Type                corev1.ServiceType
	Families            []corev1.IPFamily
	Ports               []portSpec
	Internal, External  bool // traffic policies Local
	Affinity            bool
	ExternalIP          bool
	Balanced            string // "", or the load balancer's IP mode
	Sources             []string
	NoNodePorts         bool
	Label               string // that hands it to another proxy
	Headless, Published bool
	Endpoints           []endpointSpec
	Gone                bool
}

// portSpec is a port; endpoints of the second slice have Second as target.
type portSpec struct {
	Name          string
	Protocol      corev1.Protocol
	Port          int32
	First, Second int32
}

// endpointSpec is one endpoint; Role says which server, Zones and Nodes hint "here" or "there".
type endpointSpec struct {
	Role                        string
	Second                      bool // in the second slice
	Ready, Serving, Terminating *bool
	Zones, Nodes                []string
}

// Target ports of the servers.
var oraclePorts = []int32{8080, 8081}

var bothFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}

// backends are the roles that may be endpoints.
var backends = []string{"here-0", "here-1", "there-0", "there-1", "outside"}

func oneOf[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// chance is true once in n times.
func chance(r *rand.Rand, n int) bool { return r.IntN(n) == 0 }

// randomSpec is any Service.
func randomSpec(r *rand.Rand, name string) *spec {
	s := &spec{
		Name: name, Families: oneOf(r, []corev1.IPFamily{corev1.IPv4Protocol}, []corev1.IPFamily{corev1.IPv6Protocol},
			bothFamilies, []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}),
		Headless: chance(r, 20), Published: chance(r, 6),
	}
	if chance(r, 12) {
		s.Label = oneOf(r, "service.kubernetes.io/service-proxy-name", corev1.IsHeadlessService)
	}
	for i := range 1 + r.IntN(2) {
		s.Ports = append(s.Ports, portSpec{
			Name: fmt.Sprintf("p%d", i), Protocol: oneOf(r, corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP), Port: int32(80 + i),
			First: oneOf(r, oraclePorts...), Second: oneOf(r, oraclePorts...),
		})
	}
	s.randomFronts(r)
	s.randomPolicies(r)
	s.randomEndpoints(r)
	return s
}

func (s *spec) randomFronts(r *rand.Rand) {
	s.Type = oneOf(r, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeLoadBalancer)
	if s.Headless {
		s.Type = corev1.ServiceTypeClusterIP
	}
	s.ExternalIP = !s.Headless && chance(r, 3)
	s.Balanced, s.Sources, s.NoNodePorts = "", nil, false
	if s.Type == corev1.ServiceTypeLoadBalancer {
		s.Balanced = oneOf(r, "nil", "nil", "VIP", "VIP", "Proxy")
		s.NoNodePorts = chance(r, 5)
		if chance(r, 2) {
			s.randomSources(r)
		}
	}
}

func (s *spec) randomSources(r *rand.Rand) {
	s.Sources = nil
	for _, who := range []string{"outside", "pod", "node", "nobody", "everybody"} {
		if chance(r, 3) {
			s.Sources = append(s.Sources, who+oneOf(r, "", "", "4", "6"))
		}
	}
}

func (s *spec) randomPolicies(r *rand.Rand) {
	s.Internal = chance(r, 3)
	s.External = chance(r, 2)
	s.Affinity = chance(r, 4)
}

func (s *spec) randomEndpoints(r *rand.Rand) {
	s.Endpoints = nil
	style := oneOf(r, "any", "any", "ready", "ready", "hints", "ending", "none", "far")
	if style == "none" {
		return
	}
	for _, role := range backends {
		if chance(r, 3) || style == "far" && (role == "here-0" || role == "here-1") {
			continue
		}
		e := endpointSpec{Role: role, Second: chance(r, 3)}
		switch style {
		case "any":
			e.Ready, e.Serving, e.Terminating = tri(r), tri(r), tri(r)
		case "ending":
			e.Ready, e.Serving, e.Terminating = ptr.To(false), oneOf(r, nil, ptr.To(true), ptr.To(true), ptr.To(false)), ptr.To(true)
		case "hints":
			e.hint(r)
		}
		s.Endpoints = append(s.Endpoints, e)
	}
}

func (e *endpointSpec) hint(r *rand.Rand) {
	place := "there"
	if e.Role == "here-0" || e.Role == "here-1" {
		place = "here"
	}
	if !chance(r, 6) {
		e.Zones = oneOf(r, []string{place}, []string{place}, []string{"there"}, []string{"here", "there"})
	}
	if !chance(r, 3) {
		e.Nodes = oneOf(r, []string{place}, []string{"here", "there"}, []string{"there"})
	}
	if chance(r, 6) {
		e.Ready = ptr.To(false)
	}
}

func tri(r *rand.Rand) *bool { return oneOf(r, nil, ptr.To(true), ptr.To(false)) }

// change is another state of the same Service, and what became different.
func (s *spec) change(r *rand.Rand) (next *spec, what string) {
	n := *s
	n.Endpoints, n.Ports = slices.Clone(s.Endpoints), slices.Clone(s.Ports)
	what = oneOf(r, "nothing", "endpoints", "endpoint goes", "condition", "policies", "fronts", "sources", "port renamed", "port moved", "target", "gone")
	switch what {
	case "endpoints":
		n.randomEndpoints(r)
	case "endpoint goes":
		if len(n.Endpoints) > 0 {
			n.Endpoints = slices.Delete(n.Endpoints, 0, 1)
		}
	case "condition":
		for i := range n.Endpoints {
			if chance(r, 2) {
				n.Endpoints[i].Ready, n.Endpoints[i].Serving, n.Endpoints[i].Terminating = tri(r), tri(r), tri(r)
			}
		}
	case "policies":
		n.randomPolicies(r)
	case "fronts":
		n.randomFronts(r)
	case "sources":
		if n.Type == corev1.ServiceTypeLoadBalancer {
			n.randomSources(r)
		}
	case "port renamed":
		n.Ports[0].Name += "x"
	case "port moved":
		n.Ports[0].Port += 100
	case "target":
		n.Ports[0].First, n.Ports[0].Second = n.Ports[0].Second, oneOf(r, oraclePorts...)
	case "gone":
		n.Gone = true
	}
	return &n, what
}

func (s *spec) has(family corev1.IPFamily) bool { return slices.Contains(s.Families, family) }

// local says whether the external traffic policy is Local; it needs somebody outside.
func (s *spec) local() bool {
	return s.External && !s.Headless && (s.Type != corev1.ServiceTypeClusterIP || s.ExternalIP)
}
