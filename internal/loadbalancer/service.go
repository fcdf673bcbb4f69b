package loadbalancer

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Class is the loadBalancerClass of Services that are ours in any case.
const Class = "vk-metal.io/load-balancer"

// Annotations of Services.
const (
	// AnnotationAddresses asks for addresses, separated by commas; at most one per IP version.
	AnnotationAddresses = "loadbalancer.vk-metal.io/addresses"
	// AnnotationPool asks for a pool.
	AnnotationPool = "loadbalancer.vk-metal.io/pool"
	// AnnotationSharingKey lets Services of a namespace with the same key share an address.
	AnnotationSharingKey = "loadbalancer.vk-metal.io/sharing-key"
)

// Ours says whether the Service is for this controller; classless ones are with all.
func Ours(s *corev1.Service, all bool) bool {
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer || s.DeletionTimestamp != nil {
		return false
	}
	if s.Spec.LoadBalancerClass == nil {
		return all
	}
	return *s.Spec.LoadBalancerClass == Class
}

// ServiceOf reads what matters of a Service.
func ServiceOf(s *corev1.Service) Service {
	out := Service{
		Namespace: s.Namespace, Name: s.Name, Labels: s.Labels, Created: s.CreationTimestamp.Time,
		Pool: s.Annotations[AnnotationPool], SharingKey: s.Annotations[AnnotationSharingKey],
		Local:     s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		Endpoints: labels.Set(s.Spec.Selector).String(), Have: ingress(s),
	}
	for _, f := range s.Spec.IPFamilies {
		out.Families = append(out.Families, f == corev1.IPv4Protocol)
	}
	out.Both = s.Spec.IPFamilyPolicy != nil && *s.Spec.IPFamilyPolicy == corev1.IPFamilyPolicyRequireDualStack
	for _, p := range s.Spec.Ports {
		out.Ports = append(out.Ports, fmt.Sprintf("%s/%d", p.Protocol, p.Port))
	}
	wish := s.Annotations[AnnotationAddresses]
	if wish == "" {
		wish = s.Spec.LoadBalancerIP
	}
	for text := range strings.SplitSeq(wish, ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		a, err := netip.ParseAddr(text)
		if err != nil {
			out.Bad = fmt.Errorf("read requested address %q: write it as 192.0.2.10 or 2001:db8::10", text)
			continue
		}
		out.Requested = append(out.Requested, a.Unmap())
	}
	return out
}

func ingress(s *corev1.Service) (out []netip.Addr) {
	for _, i := range s.Status.LoadBalancer.Ingress {
		if a, err := netip.ParseAddr(i.IP); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}
