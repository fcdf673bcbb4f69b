package services

import (
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// stripper takes from Services and slices what nobody on a node reads, and has the rest share
// its memory: decoded, each endpoint has some ten allocations of its own, and a big cluster has
// a hundred thousand. Its result may not be changed, as nothing in a cache may. Safe for
// concurrent use.
type stripper struct {
	node string // whose pods' UIDs are kept

	mu    sync.Mutex
	texts map[string]*string
	ports map[int32]*int32
	hints map[string]*discoveryv1.EndpointHints // by the only zone
}

func newStripper(node string) *stripper { return &stripper{node: node} }

// maxShared bounds how many values of a kind are remembered: nodes come and go.
const maxShared = 1 << 14

// stripped is the generation of what strip returned: an informer's first list passes by it twice.
const stripped = -1

// strip is a cache.TransformFunc.
func (s *stripper) strip(obj any) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch o := obj.(type) {
	case *corev1.Service:
		if o.Generation != stripped {
			return s.service(o), nil
		}
	case *discoveryv1.EndpointSlice:
		if o.Generation != stripped {
			return s.slice(o), nil
		}
	}
	return obj, nil
}

// shared is the one place of a value in memory.
func shared[V comparable](all *map[V]*V, v V) *V {
	if have := (*all)[v]; have != nil {
		return have
	}
	if *all == nil || len(*all) >= maxShared {
		*all = map[V]*V{}
	}
	(*all)[v] = &v
	return &v
}

func (s *stripper) text(t string) string {
	if t == "" {
		return ""
	}
	return *shared(&s.texts, t)
}

func (s *stripper) pointer(t *string) *string {
	if t == nil {
		return nil
	}
	return shared(&s.texts, *t)
}

func (s *stripper) meta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: m.Name, Namespace: s.text(m.Namespace), UID: m.UID, ResourceVersion: m.ResourceVersion,
		CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp, Labels: m.Labels, Generation: stripped,
	}
}

func (s *stripper) service(in *corev1.Service) *corev1.Service {
	out := &corev1.Service{ObjectMeta: s.meta(&in.ObjectMeta), Spec: in.Spec, Status: corev1.ServiceStatus{LoadBalancer: in.Status.LoadBalancer}}
	spec := &out.Spec
	spec.Type = corev1.ServiceType(s.text(string(spec.Type)))
	spec.SessionAffinity = corev1.ServiceAffinity(s.text(string(spec.SessionAffinity)))
	spec.IPFamilyPolicy, spec.TrafficDistribution, spec.AllocateLoadBalancerNodePorts = nil, nil, nil
	if p := spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyCluster {
		spec.InternalTrafficPolicy = nil // which means the same
	}
	spec.IPFamilies = nil
	if len(spec.ClusterIPs) > 0 && spec.ClusterIPs[0] == spec.ClusterIP {
		spec.ClusterIP = spec.ClusterIPs[0]
	}
	return out
}

func (s *stripper) slice(in *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{
		ObjectMeta: s.meta(&in.ObjectMeta), AddressType: discoveryv1.AddressType(s.text(string(in.AddressType))),
		Ports: make([]discoveryv1.EndpointPort, len(in.Ports)), Endpoints: make([]discoveryv1.Endpoint, len(in.Endpoints)),
	}
	if service, ok := in.Labels[discoveryv1.LabelServiceName]; ok {
		out.Labels = map[string]string{discoveryv1.LabelServiceName: service}
	}
	for i, p := range in.Ports {
		out.Ports[i] = discoveryv1.EndpointPort{Name: s.pointer(p.Name), Protocol: protocolPointer(p.Protocol)}
		if p.Port != nil {
			out.Ports[i].Port = shared(&s.ports, *p.Port)
		}
	}
	addresses := together(in.Endpoints)
	for i := range in.Endpoints {
		e := &in.Endpoints[i]
		n := len(e.Addresses)
		out.Endpoints[i] = discoveryv1.Endpoint{
			Addresses: addresses[:n:n], NodeName: s.pointer(e.NodeName), Hints: s.hintsOf(e.Hints), TargetRef: s.target(e),
			Conditions: discoveryv1.EndpointConditions{
				Ready: boolPointer(e.Conditions.Ready), Serving: boolPointer(e.Conditions.Serving), Terminating: boolPointer(e.Conditions.Terminating),
			},
		}
		addresses = addresses[n:]
	}
	return out
}

// target keeps which of this node's pods an endpoint is; see package endpoints.
func (s *stripper) target(e *discoveryv1.Endpoint) *corev1.ObjectReference {
	if e.TargetRef == nil || e.NodeName != nil && *e.NodeName != s.node {
		return nil
	}
	return &corev1.ObjectReference{Kind: s.text(e.TargetRef.Kind), UID: e.TargetRef.UID}
}

func (s *stripper) hintsOf(h *discoveryv1.EndpointHints) *discoveryv1.EndpointHints {
	if h == nil || len(h.ForNodes) > 0 || len(h.ForZones) != 1 {
		return h
	}
	zone := h.ForZones[0].Name
	if have := s.hints[zone]; have != nil {
		return have
	}
	if s.hints == nil || len(s.hints) >= maxShared {
		s.hints = map[string]*discoveryv1.EndpointHints{}
	}
	s.hints[zone] = h
	return h
}

// together are the addresses of all endpoints, one after the other, as parts of one string.
func together(list []discoveryv1.Endpoint) []string {
	count, size := 0, 0
	for i := range list {
		for _, a := range list[i].Addresses {
			count, size = count+1, size+len(a)
		}
	}
	var all strings.Builder
	all.Grow(size)
	out := make([]string, 0, count)
	for i := range list {
		for _, a := range list[i].Addresses {
			begin := all.Len()
			all.WriteString(a) // never grows: earlier parts stay valid
			out = append(out, all.String()[begin:])
		}
	}
	return out
}

var (
	yes, no        = true, false
	tcp, udp, sctp = corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP
)

func boolPointer(b *bool) *bool {
	switch {
	case b == nil:
		return nil
	case *b:
		return &yes
	}
	return &no
}

func protocolPointer(p *corev1.Protocol) *corev1.Protocol {
	if p != nil {
		for _, known := range []*corev1.Protocol{&tcp, &udp, &sctp} {
			if *known == *p {
				return known
			}
		}
	}
	return p
}
