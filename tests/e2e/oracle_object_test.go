package e2e

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// service is the object; on takes what the API server has chosen for it before.
func (s *spec) service(o *side, on *corev1.Service) *corev1.Service {
	v := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: o.prefix + s.Name, Labels: map[string]string{}}}
	if on != nil {
		v.ResourceVersion = on.ResourceVersion
	}
	if s.Label != "" {
		v.Labels[s.Label] = ""
	}
	p := &v.Spec
	p.Type, p.IPFamilies, p.PublishNotReadyAddresses = s.Type, s.Families, s.Published
	p.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicySingleStack)
	if len(s.Families) > 1 {
		p.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyRequireDualStack)
	}
	if s.Headless {
		p.ClusterIP = corev1.ClusterIPNone
	} else if on != nil {
		p.ClusterIP, p.ClusterIPs = on.Spec.ClusterIP, on.Spec.ClusterIPs
	}
	if s.Internal {
		p.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
	}
	if s.local() {
		p.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		if on != nil && s.Type == corev1.ServiceTypeLoadBalancer {
			p.HealthCheckNodePort = on.Spec.HealthCheckNodePort
		}
	}
	if s.Affinity && !s.Headless {
		p.SessionAffinity = corev1.ServiceAffinityClientIP
	}
	if s.ExternalIP {
		for _, family := range s.Families {
			p.ExternalIPs = append(p.ExternalIPs, o.external(s.Name, family, 1).String())
		}
	}
	if s.NoNodePorts {
		p.AllocateLoadBalancerNodePorts = ptr.To(false)
	}
	for _, who := range s.Sources {
		p.LoadBalancerSourceRanges = append(p.LoadBalancerSourceRanges, o.ranges(who)...)
	}
	slices.Sort(p.LoadBalancerSourceRanges)
	p.LoadBalancerSourceRanges = slices.Compact(p.LoadBalancerSourceRanges)
	for i, port := range s.Ports {
		sp := corev1.ServicePort{Name: port.Name, Protocol: port.Protocol, Port: port.Port}
		if on != nil && i < len(on.Spec.Ports) && s.Type != corev1.ServiceTypeClusterIP && !s.NoNodePorts && on.Spec.Ports[i].Protocol == port.Protocol {
			sp.NodePort = on.Spec.Ports[i].NodePort
		}
		p.Ports = append(p.Ports, sp)
	}
	return v
}

// status is what the load balancer says.
func (s *spec) status(o *side) (out corev1.LoadBalancerStatus) {
	if s.Balanced == "" {
		return out
	}
	for _, family := range s.Families {
		in := corev1.LoadBalancerIngress{IP: o.external(s.Name, family, 2).String()}
		if s.Balanced != "nil" {
			in.IPMode = ptr.To(corev1.LoadBalancerIPMode(s.Balanced))
		}
		out.Ingress = append(out.Ingress, in)
	}
	return out
}

// slices are the objects: two for each IP version.
func (s *spec) slices(o *side) (out []*discoveryv1.EndpointSlice) {
	for _, family := range s.Families {
		for i, second := range []bool{false, true} {
			v := &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{
					Name:   fmt.Sprintf("%s%s-%s-%d", o.prefix, s.Name, map[corev1.IPFamily]string{corev1.IPv4Protocol: "v4", corev1.IPv6Protocol: "v6"}[family], i),
					Labels: map[string]string{discoveryv1.LabelServiceName: o.prefix + s.Name, discoveryv1.LabelManagedBy: "oracle"},
				},
				AddressType: discoveryv1.AddressType(family),
			}
			if s.Label != "" { // as the EndpointSlice controller has it
				v.Labels[s.Label] = ""
			}
			for _, p := range s.Ports {
				target := p.First
				if second {
					target = p.Second
				}
				v.Ports = append(v.Ports, discoveryv1.EndpointPort{Name: ptr.To(p.Name), Port: ptr.To(target), Protocol: ptr.To(p.Protocol)})
			}
			for _, e := range s.Endpoints {
				// An outside endpoint would see another address than pods do, and which one a client stays
				// with is by chance.
				if e.Second == second && (e.Role != "outside" || !s.Affinity) {
					v.Endpoints = append(v.Endpoints, e.object(o, family))
				}
			}
			out = append(out, v)
		}
	}
	return out
}

func (e *endpointSpec) object(o *side, family corev1.IPFamily) discoveryv1.Endpoint {
	at := o.place(e.Role)
	v := discoveryv1.Endpoint{
		Addresses:  []string{at.addr(family == corev1.IPv6Protocol).String()},
		Conditions: discoveryv1.EndpointConditions{Ready: e.Ready, Serving: e.Serving, Terminating: e.Terminating},
	}
	if at.node != "" {
		v.NodeName = ptr.To(at.node)
	}
	if len(e.Zones)+len(e.Nodes) > 0 {
		v.Hints = &discoveryv1.EndpointHints{}
	}
	for _, z := range e.Zones {
		v.Hints.ForZones = append(v.Hints.ForZones, discoveryv1.ForZone{Name: zoneOf(o.absolute(z))})
	}
	for _, n := range e.Nodes {
		v.Hints.ForNodes = append(v.Hints.ForNodes, discoveryv1.ForNode{Name: o.absolute(n)})
	}
	return v
}

// prefixes of addresses that lead to a side's node: see the outside host's routes.
func externalPrefixes(side int) (v4, v6 netip.Prefix) {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(side), 0}), 24), netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 2: 0xff, 3: 0xff, 7: byte(side)}), 64)
}
