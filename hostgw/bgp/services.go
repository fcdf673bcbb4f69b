package bgp

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// ServiceOf reads what matters of a Service and its slices, as seen from a node; false if
// it has no addresses that could be told.
func ServiceOf(s *corev1.Service, slicesOf []*discoveryv1.EndpointSlice, node string) (Service, bool) {
	v := Service{
		Name: s.Namespace + "/" + s.Name, Labels: s.Labels,
		ClusterIPs: parseAddrs(s.Spec.ClusterIPs), ExternalIPs: parseAddrs(s.Spec.ExternalIPs),
		LocalInternal: s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
		LocalExternal: s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName || s.Spec.ClusterIP == corev1.ClusterIPNone {
		return v, false
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for _, ingress := range s.Status.LoadBalancer.Ingress {
			if ingress.IPMode == nil || *ingress.IPMode == corev1.LoadBalancerIPModeVIP {
				v.LoadBalancerIPs = append(v.LoadBalancerIPs, parseAddrs([]string{ingress.IP})...)
			}
		}
	}
	for _, slice := range slicesOf {
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			v.Ready = true
			v.Here = v.Here || e.NodeName != nil && *e.NodeName == node
		}
	}
	return v, len(v.ClusterIPs)+len(v.ExternalIPs)+len(v.LoadBalancerIPs) > 0
}

// parseAddrs leaves out what no Service may take over: the API server refuses most of it.
func parseAddrs(texts []string) (out []netip.Addr) {
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		a = a.Unmap()
		if err == nil && a.Zone() == "" && a.IsGlobalUnicast() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}
