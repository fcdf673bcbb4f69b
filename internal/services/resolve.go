package services

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// NodeFacts are what of the node decides which endpoints it uses.
type NodeFacts struct {
	Name string
	// Zone is the label topology.kubernetes.io/zone.
	Zone string
	// Addresses of the node.
	Addresses []netip.Addr
	// Leaving tells load balancers to send nothing new: the node is being deleted.
	Leaving bool

	unready func(netip.Addr) bool // of this node's pods; nil knows none
}

// LabelServiceProxyName hands a Service to another proxy.
const LabelServiceProxyName = "service.kubernetes.io/service-proxy-name"

// proxied says whether the Service is ours to serve.
func proxied(s *corev1.Service) bool {
	_, other := s.Labels[LabelServiceProxyName]
	_, headless := s.Labels[corev1.IsHeadlessService]
	return !other && !headless && s.Spec.Type != corev1.ServiceTypeExternalName &&
		s.Spec.ClusterIP != "" && s.Spec.ClusterIP != corev1.ClusterIPNone
}

// Resolve says what the node does for a Service, sorted by IP version and port. The ports
// of before (nil at first) only influence which endpoint gets which slot.
func Resolve(s *corev1.Service, sliceList []*discoveryv1.EndpointSlice, node NodeFacts, before []Port) []Port {
	if s == nil || !proxied(s) {
		return nil
	}
	var out []Port
	for _, ip := range clusterIPs(s) {
		for i := range s.Spec.Ports {
			p := resolvePort(s, &s.Spec.Ports[i], ip, sliceList, node)
			if p.Protocol == 0 {
				continue
			}
			p.place(before)
			out = append(out, p.Port)
		}
	}
	return out
}

// clusterIPs are the Service's cluster addresses, at most one of each IP version.
func clusterIPs(s *corev1.Service) []netip.Addr {
	texts := s.Spec.ClusterIPs
	if len(texts) == 0 {
		texts = []string{s.Spec.ClusterIP}
	}
	var out []netip.Addr
	for _, text := range texts {
		ip := serviceAddr(text)
		if ip.IsValid() && !slices.ContainsFunc(out, func(o netip.Addr) bool { return o.Is6() == ip.Is6() }) {
			out = append(out, ip)
		}
	}
	return out
}

// serviceAddr parses an address that may be a frontend; else it is invalid. The node's own
// loopback must not be taken over by a Service.
func serviceAddr(text string) netip.Addr {
	ip, err := netip.ParseAddr(text)
	if ip = ip.Unmap(); err != nil || ip.Zone() != "" || ip.IsLoopback() || ip.IsUnspecified() || ip.IsMulticast() {
		return netip.Addr{}
	}
	return ip
}

// resolved is a Port whose endpoints have no slots yet.
type resolved struct {
	Port
	cluster, here []endpoint
}

func resolvePort(s *corev1.Service, port *corev1.ServicePort, ip netip.Addr, sliceList []*discoveryv1.EndpointSlice, node NodeFacts) *resolved {
	proto := protocolOf(port.Protocol)
	r := &resolved{Port: Port{
		ID:       fmt.Sprintf("%s/%s:%s/%s", s.Namespace, s.Name, portLabel(port), proto),
		Protocol: proto, Affinity: affinity(s), Frontend: frontends(s, port, ip, node),
	}}
	all := withdraw(portEndpoints(sliceList, ip.Is6(), port.Name, proto, node.Name), node.unready)
	r.Some = len(usable(all)) > 0
	if proto == unix.IPPROTO_UDP {
		r.Serving = serving(all)
	}
	r.cluster = preferred(all, node.Name, node.Zone)
	near := filter(all, func(e *endpoint) bool { return e.near })
	r.here = usable(near)
	for _, e := range near {
		if !slices.Contains(r.Near, e.addr.Addr()) {
			r.Near = append(r.Near, e.addr.Addr())
		}
	}
	return r
}

func (r *resolved) place(before []Port) {
	var old Port
	for _, b := range before {
		if b.ID == r.ID && b.IPv6() == r.IPv6() {
			old = b
		}
	}
	r.Cluster = place(old.Cluster, r.cluster)
	if slices.ContainsFunc(r.Frontend, func(f Frontend) bool { return f.Local }) {
		r.Here = place(old.Here, r.here)
	}
}

func portLabel(port *corev1.ServicePort) string {
	if port.Name != "" {
		return port.Name
	}
	return fmt.Sprint(port.Port)
}

func affinity(s *corev1.Service) time.Duration {
	if s.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	return time.Duration(max(seconds, 1)) * time.Second
}

// frontends are the addresses of one port in the IP version of ip, without repeats.
func frontends(s *corev1.Service, port *corev1.ServicePort, ip netip.Addr, node NodeFacts) []Frontend {
	number := uint16(port.Port)
	internal := s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	local := s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	out := []Frontend{{Kind: ClusterIP, Addr: ip, Port: number, Local: internal}}
	external := func(text string, limited bool, sources []netip.Prefix) {
		a := serviceAddr(text)
		if a.IsValid() && a.Is6() == ip.Is6() && !slices.ContainsFunc(out, func(f Frontend) bool { return f.Addr == a }) {
			out = append(out, Frontend{
				Kind: External, Addr: a, Port: number, Local: local, Limited: limited, Sources: withSelf(sources, a, node),
			})
		}
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		sources := sourceRanges(s, ip.Is6())
		for _, ingress := range s.Status.LoadBalancer.Ingress {
			if ingress.IPMode == nil || *ingress.IPMode == corev1.LoadBalancerIPModeVIP {
				external(ingress.IP, len(s.Spec.LoadBalancerSourceRanges) > 0, sources)
			}
		}
	}
	for _, text := range s.Spec.ExternalIPs {
		external(text, false, nil)
	}
	if port.NodePort > 0 && s.Spec.Type != corev1.ServiceTypeClusterIP {
		every := netip.IPv4Unspecified()
		if ip.Is6() {
			every = netip.IPv6Unspecified()
		}
		out = append(out, Frontend{Kind: NodePort, Addr: every, Port: uint16(port.NodePort), Local: local})
	}
	return out
}

// sourceRanges are the ranges of one IP version. A Service that has ranges of the other
// version only lets nobody in on this one.
func sourceRanges(s *corev1.Service, ipv6 bool) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range s.Spec.LoadBalancerSourceRanges {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err == nil && p.Addr().Is6() == ipv6 && !slices.Contains(out, p.Masked()) {
			out = append(out, p.Masked())
		}
	}
	return out
}

// withSelf lets the node reach the address from itself if it may connect at all: where a
// load balancer's address is one of the node's own, the node connects from that address.
func withSelf(sources []netip.Prefix, addr netip.Addr, node NodeFacts) []netip.Prefix {
	for _, s := range sources {
		if slices.ContainsFunc(node.Addresses, s.Contains) {
			return append(slices.Clip(sources), netip.PrefixFrom(addr, addr.BitLen()))
		}
	}
	return sources
}
