package policy

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// truth is NetworkPolicy as its documentation words it, read from the API's objects each
// time: the judge of what the kernel does. It shares no code with what it judges.
type truth struct{ *worldGen }

// allows says whether a connection may begin.
func (w truth) allows(p packet) bool {
	if p.from == p.to {
		return true // a pod cannot block access to itself
	}
	return w.direction(p, networkingv1.PolicyTypeEgress, p.from, p.to) && w.direction(p, networkingv1.PolicyTypeIngress, p.to, p.from)
}

// direction looks at the pod that has the address self, if it is one of this node.
func (w truth) direction(p packet, d networkingv1.PolicyType, self, peer netip.Addr) bool {
	isolated := false
	for _, pod := range w.sortedPods() {
		here := pod.Node == testNode && !pod.Finished || pod.Admitted
		if !here || pod.HostNetwork || !slices.Contains(pod.IPs, self) {
			continue
		}
		for _, policy := range w.policies {
			if policy.Namespace != pod.Namespace || !selects(&policy.Spec.PodSelector, pod.Labels) || !slices.Contains(typesOf(policy), d) {
				continue
			}
			isolated = true
			if w.policyAllows(policy, d, p, peer) {
				return true
			}
		}
	}
	return !isolated
}

func typesOf(p *networkingv1.NetworkPolicy) []networkingv1.PolicyType {
	if len(p.Spec.PolicyTypes) > 0 {
		return p.Spec.PolicyTypes
	}
	if len(p.Spec.Egress) > 0 {
		return []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	}
	return []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
}

func (w truth) policyAllows(policy *networkingv1.NetworkPolicy, d networkingv1.PolicyType, p packet, peer netip.Addr) bool {
	if d == networkingv1.PolicyTypeIngress {
		return slices.ContainsFunc(policy.Spec.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool {
			return w.isPeer(policy.Namespace, r.From, peer) && w.isPort(r.Ports, p)
		})
	}
	return slices.ContainsFunc(policy.Spec.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool {
		return w.isPeer(policy.Namespace, r.To, peer) && w.isPort(r.Ports, p)
	})
}

func (w truth) isPeer(namespace string, peers []networkingv1.NetworkPolicyPeer, a netip.Addr) bool {
	return len(peers) == 0 || slices.ContainsFunc(peers, func(peer networkingv1.NetworkPolicyPeer) bool {
		if b := peer.IPBlock; b != nil {
			return inCIDR(b.CIDR, a) && !slices.ContainsFunc(b.Except, func(cidr string) bool { return inCIDR(cidr, a) })
		}
		return slices.ContainsFunc(w.sortedPods(), func(pod *Pod) bool {
			if pod.Finished || !slices.Contains(pod.IPs, a) || peer.PodSelector != nil && !selects(peer.PodSelector, pod.Labels) {
				return false
			}
			if peer.NamespaceSelector == nil {
				return pod.Namespace == namespace
			}
			labels, known := w.namespaces[pod.Namespace]
			return known && selects(peer.NamespaceSelector, labels)
		})
	})
}

func (w truth) isPort(ports []networkingv1.NetworkPolicyPort, p packet) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(port networkingv1.NetworkPolicyPort) bool {
		numbers := map[corev1.Protocol]Protocol{corev1.ProtocolTCP: 6, corev1.ProtocolUDP: 17, corev1.ProtocolSCTP: 132}
		protocol := corev1.ProtocolTCP
		if port.Protocol != nil {
			protocol = *port.Protocol
		}
		switch {
		case numbers[protocol] != p.protocol:
			return false
		case port.Port == nil:
			return true
		case port.Port.Type == intstr.String:
			return w.hasNamed(p, port.Port.StrVal)
		case port.EndPort != nil:
			return int32(p.port) >= port.Port.IntVal && int32(p.port) <= *port.EndPort
		}
		return int32(p.port) == port.Port.IntVal
	})
}

// hasNamed says whether the destination calls the port so.
func (w truth) hasNamed(p packet, name string) bool {
	return slices.ContainsFunc(w.sortedPods(), func(pod *Pod) bool {
		return !pod.Finished && slices.Contains(pod.IPs, p.to) && slices.Contains(pod.Ports, NamedPort{name, p.protocol, p.port})
	})
}

func inCIDR(cidr string, a netip.Addr) bool { return netip.MustParsePrefix(cidr).Contains(a) }

func selects(s *metav1.LabelSelector, of map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(labels.Set(of))
}
