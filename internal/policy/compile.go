package policy

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Policy is a compiled NetworkPolicy. A selected pod is isolated in the directions that it has.
type Policy struct {
	Key       string // namespace/name
	Namespace string
	selector  labels.Selector
	isolates  [2]bool // by Direction
	rules     [2][]allowance
}

// allowance is one ingress or egress rule: any of the peers, at any of the ports.
type allowance struct {
	anyPeer, anyPort bool
	selectors        []peerSelector
	blocks           [2][]span // IPv4, IPv6
	ports            map[Protocol][]portSpan
	named            []namedPort
}

// namedPort is a port that each pod may have at another number.
type namedPort struct {
	name     string
	protocol Protocol
}

// peerSelector selects pods, in one namespace or in those with certain labels.
type peerSelector struct {
	namespace  string // "" asks namespaces
	namespaces labels.Selector
	pods       labels.Selector
}

// String tells two selectors apart.
func (s peerSelector) String() string {
	if s.namespace != "" {
		return fmt.Sprintf("namespace=%s pods{%s}", s.namespace, s.pods)
	}
	return fmt.Sprintf("namespaces{%s} pods{%s}", s.namespaces, s.pods)
}

func (s peerSelector) matches(p *Pod, namespace map[string]string) bool {
	if s.namespace != "" && s.namespace != p.Namespace || s.namespace == "" && (namespace == nil || !s.namespaces.Matches(labels.Set(namespace))) {
		return false
	}
	return s.pods.Matches(labels.Set(p.Labels))
}

// compile translates a policy. What it cannot understand allows nothing, and is told by the
// error; a policy whose podSelector is broken cannot be enforced at all and is nil.
func compile(np *networkingv1.NetworkPolicy) (*Policy, error) {
	selector, err := metav1.LabelSelectorAsSelector(&np.Spec.PodSelector)
	if err != nil {
		return nil, fmt.Errorf("networkpolicy %s/%s: spec.podSelector: %w", np.Namespace, np.Name, err)
	}
	p := &Policy{Key: np.Namespace + "/" + np.Name, Namespace: np.Namespace, selector: selector}
	p.isolates[Ingress], p.isolates[Egress] = isolates(np)
	var problems []error
	fail := func(field string, err error) {
		problems = append(problems, fmt.Errorf("networkpolicy %s: spec.%s: %w; the rule allows less than it says", p.Key, field, err))
	}
	if p.isolates[Ingress] {
		for i, r := range np.Spec.Ingress {
			p.rules[Ingress] = append(p.rules[Ingress], p.allowance(fmt.Sprintf("ingress[%d]", i), "from", r.From, r.Ports, fail))
		}
	}
	if p.isolates[Egress] {
		for i, r := range np.Spec.Egress {
			p.rules[Egress] = append(p.rules[Egress], p.allowance(fmt.Sprintf("egress[%d]", i), "to", r.To, r.Ports, fail))
		}
	}
	return p, errors.Join(problems...)
}

// isolates are the policy's directions; a policy that does not say isolates ingress, and
// egress when it has such rules.
func isolates(np *networkingv1.NetworkPolicy) (ingress, egress bool) {
	if len(np.Spec.PolicyTypes) == 0 {
		return true, len(np.Spec.Egress) > 0
	}
	return slices.Contains(np.Spec.PolicyTypes, networkingv1.PolicyTypeIngress), slices.Contains(np.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
}

func (p *Policy) allowance(field, peersField string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort, fail func(string, error)) allowance {
	a := allowance{anyPeer: len(peers) == 0, anyPort: len(ports) == 0, ports: map[Protocol][]portSpan{}}
	for i := range peers {
		if err := a.peer(p.Namespace, &peers[i]); err != nil {
			fail(fmt.Sprintf("%s.%s[%d]", field, peersField, i), err)
		}
	}
	for i := range ports {
		if err := a.port(&ports[i]); err != nil {
			fail(fmt.Sprintf("%s.ports[%d]", field, i), err)
		}
	}
	a.tidy()
	return a
}

// tidy puts everything in one order, without repetitions: equal rules are then equal values.
func (a *allowance) tidy() {
	for v := range a.blocks {
		a.blocks[v] = union(a.blocks[v])
	}
	for proto, spans := range a.ports {
		a.ports[proto] = unionPorts(spans)
	}
	slices.SortFunc(a.selectors, func(x, y peerSelector) int { return cmp.Compare(x.String(), y.String()) })
	a.selectors = slices.CompactFunc(a.selectors, func(x, y peerSelector) bool { return x.String() == y.String() })
	slices.SortFunc(a.named, func(x, y namedPort) int {
		return cmp.Or(cmp.Compare(x.name, y.name), cmp.Compare(x.protocol, y.protocol))
	})
	a.named = slices.Compact(a.named)
}

func (a *allowance) peer(namespace string, peer *networkingv1.NetworkPolicyPeer) error {
	if peer.IPBlock != nil {
		return a.ipBlock(peer.IPBlock)
	}
	s := peerSelector{namespace: namespace, pods: labels.Everything()}
	var err error
	if peer.NamespaceSelector != nil {
		s.namespace = ""
		if s.namespaces, err = metav1.LabelSelectorAsSelector(peer.NamespaceSelector); err != nil {
			return fmt.Errorf("namespaceSelector: %w", err)
		}
	}
	if peer.PodSelector != nil {
		if s.pods, err = metav1.LabelSelectorAsSelector(peer.PodSelector); err != nil {
			return fmt.Errorf("podSelector: %w", err)
		}
	}
	if peer.NamespaceSelector == nil && peer.PodSelector == nil {
		return errors.New("has none of podSelector, namespaceSelector and ipBlock")
	}
	a.selectors = append(a.selectors, s)
	return nil
}

func (a *allowance) ipBlock(b *networkingv1.IPBlock) error {
	cidr, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return fmt.Errorf("ipBlock.cidr: %w", err)
	}
	var except []netip.Prefix
	for i, text := range b.Except {
		hole, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("ipBlock.except[%d]: %w", i, err)
		}
		if hole.Addr().Is4() == cidr.Addr().Is4() {
			except = append(except, hole)
		}
	}
	v := version(cidr.Addr())
	a.blocks[v] = append(a.blocks[v], block(cidr, except)...)
	return nil
}

// version is 0 for IPv4 and 1 for IPv6.
func version(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func (a *allowance) port(p *networkingv1.NetworkPolicyPort) error {
	proto := Protocol(6)
	if p.Protocol != nil {
		var err error
		if proto, err = protocolOf(*p.Protocol); err != nil {
			return err
		}
	}
	if p.Port != nil && p.Port.Type == intstr.String {
		a.named = append(a.named, namedPort{p.Port.StrVal, proto})
		return nil
	}
	s := portSpan{0, 65535}
	if p.Port != nil {
		last := p.Port.IntVal
		if p.EndPort != nil {
			last = *p.EndPort
		}
		if p.Port.IntVal < 1 || last > 65535 || last < p.Port.IntVal {
			return fmt.Errorf("%d to %d is no range of ports", p.Port.IntVal, last)
		}
		s = portSpan{uint16(p.Port.IntVal), uint16(last)}
	}
	a.ports[proto] = append(a.ports[proto], s)
	return nil
}

// selects says whether the policy is about the pod.
func (p *Policy) selects(pod *Pod) bool {
	return p.Namespace == pod.Namespace && p.selector.Matches(labels.Set(pod.Labels))
}
