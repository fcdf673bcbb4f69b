package lan

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// ServiceOf reads what matters of a Service and its slices; false if none of its addresses
// could be announced. Only what a load balancer gave is: externalIPs are at the choice of
// everybody who may make Services, and would let them take any address of the LAN.
func ServiceOf(s *corev1.Service, slicesOf []*discoveryv1.EndpointSlice) (Service, bool) {
	v := Service{Name: s.Namespace + "/" + s.Name, Local: s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal}
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer || s.Spec.ClusterIP == corev1.ClusterIPNone {
		return v, false
	}
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		a, err := netip.ParseAddr(ingress.IP)
		a = a.Unmap()
		vip := ingress.IPMode == nil || *ingress.IPMode == corev1.LoadBalancerIPModeVIP
		if err == nil && vip && a.Zone() == "" && a.IsGlobalUnicast() && !slices.Contains(v.Addrs, a) {
			v.Addrs = append(v.Addrs, a)
		}
	}
	for _, slice := range slicesOf {
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if c := e.Conditions.Ready; c != nil && !*c {
				continue
			}
			node := "" // an endpoint outside the cluster
			if e.NodeName != nil {
				node = *e.NodeName
			}
			if at, there := slices.BinarySearch(v.Nodes, node); !there {
				v.Nodes = slices.Insert(v.Nodes, at, node)
			}
		}
	}
	return v, len(v.Addrs) > 0
}
