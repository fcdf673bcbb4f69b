package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"
)

// worldGen draws what happens in a cluster, out of so few names, labels and addresses that
// everything meets everything.
type worldGen struct {
	namespaces map[string]map[string]string
	pods       map[string]*Pod
	policies   map[string]*networkingv1.NetworkPolicy
}

func newWorldGen() *worldGen {
	return &worldGen{map[string]map[string]string{}, map[string]*Pod{}, map[string]*networkingv1.NetworkPolicy{}}
}

// event changes one thing, here and in the engine.
func (g *worldGen) event(t *rapid.T, e *engine) {
	gone := rapid.IntRange(0, 4).Draw(t, "gone") == 0
	switch rapid.IntRange(0, 3).Draw(t, "kind") {
	case 0:
		name := anyOf(t, "namespace", "x", "y", "z")
		if g.namespaces[name] = anyLabels(t); gone {
			delete(g.namespaces, name)
		}
		e.setNamespace(name, g.namespaces[name])
	case 1, 2:
		uid := fmt.Sprint("pod", rapid.IntRange(0, 5).Draw(t, "pod"))
		if g.pods[uid] = anyPod(t, uid); gone {
			delete(g.pods, uid)
		}
		e.setPod(uid, g.pods[uid])
	default:
		name, namespace := anyOf(t, "policy", "p", "q"), anyOf(t, "namespace", "x", "y")
		key := namespace + "/" + name
		if g.policies[key] = anyPolicy(t, namespace, name); gone {
			delete(g.policies, key)
			e.setPolicy(key, nil)
			return
		}
		e.setPolicy(key, compiled(t, g.policies[key]))
	}
}

// load gives an engine what there is in the end.
func (g *worldGen) load(t *rapid.T, e *engine) {
	for key, p := range g.policies {
		e.setPolicy(key, compiled(t, p))
	}
	for uid, p := range g.pods {
		e.setPod(uid, p)
	}
	for name, labels := range g.namespaces {
		e.setNamespace(name, labels)
	}
}

func compiled(t *rapid.T, p *networkingv1.NetworkPolicy) *Policy {
	c, err := compile(p)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func anyOf[T any](t *rapid.T, what string, of ...T) T { return rapid.SampledFrom(of).Draw(t, what) }

func anyLabels(t *rapid.T) map[string]string {
	return anyOf(t, "labels", map[string]string{}, map[string]string{"a": "1"}, map[string]string{"a": "2"}, map[string]string{"a": "1", "b": "1"})
}

// anyPod is in its namespace for ever, as pods are.
func anyPod(t *rapid.T, uid string) *Pod {
	n := uid[len(uid)-1] - '0'
	p := &Pod{
		UID: uid, Name: uid, Namespace: []string{"x", "y"}[n%2], Labels: anyLabels(t), Created: int64(n),
		Node: anyOf(t, "node", testNode, testNode, "node-b"), Finished: anyOf(t, "finished", false, false, false, true),
		HostNetwork: anyOf(t, "host network", false, false, false, true), Admitted: anyOf(t, "admitted", false, false, true),
	}
	last := byte(rapid.IntRange(1, 4).Draw(t, "address"))
	p.IPs = anyOf(t, "addresses", nil, []netip.Addr{podAddr(last, false)}, []netip.Addr{podAddr(last, false), podAddr(last, true)})
	if rapid.Bool().Draw(t, "named") {
		p.Ports = []NamedPort{{"http", 6, anyOf(t, "port", uint16(80), 81)}, {"dns", 17, 80}}
	}
	return p
}

func podAddr(last byte, ipv6 bool) netip.Addr {
	if ipv6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:244:1::%d", last))
	}
	return netip.AddrFrom4([4]byte{10, 244, 1, last})
}

func anySelector(t *rapid.T) *metav1.LabelSelector {
	return anyOf(t, "selector",
		&metav1.LabelSelector{}, &metav1.LabelSelector{MatchLabels: map[string]string{"a": "1"}}, &metav1.LabelSelector{MatchLabels: map[string]string{"a": "2"}},
		&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "b", Operator: metav1.LabelSelectorOpDoesNotExist}}})
}

func anyPolicy(t *rapid.T, namespace, name string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	p.Spec.PodSelector = *anySelector(t)
	p.Spec.PolicyTypes = anyOf(t, "types", nil, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		[]networkingv1.PolicyType{networkingv1.PolicyTypeEgress}, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress})
	for range rapid.IntRange(0, 2).Draw(t, "ingress") {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: anyPeers(t), Ports: anyPorts(t)})
	}
	for range rapid.IntRange(0, 2).Draw(t, "egress") {
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: anyPeers(t), Ports: anyPorts(t)})
	}
	return p
}

func anyPeers(t *rapid.T) (out []networkingv1.NetworkPolicyPeer) {
	for range rapid.IntRange(0, 2).Draw(t, "peers") {
		var p networkingv1.NetworkPolicyPeer
		switch rapid.IntRange(0, 3).Draw(t, "peer") {
		case 0:
			p.PodSelector = anySelector(t)
		case 1:
			p.NamespaceSelector = anySelector(t)
		case 2:
			p.PodSelector, p.NamespaceSelector = anySelector(t), anySelector(t)
		default:
			p.IPBlock = anyOf(t, "block",
				&networkingv1.IPBlock{CIDR: "10.244.1.0/30"}, &networkingv1.IPBlock{CIDR: "0.0.0.0/0", Except: []string{"10.244.1.2/32", "10.244.1.0/31"}},
				&networkingv1.IPBlock{CIDR: "::/0"}, &networkingv1.IPBlock{CIDR: "fd00:244:1::/64", Except: []string{"fd00:244:1::2/127"}})
		}
		out = append(out, p)
	}
	return out
}

func anyPorts(t *rapid.T) (out []networkingv1.NetworkPolicyPort) {
	for range rapid.IntRange(0, 2).Draw(t, "ports") {
		var p networkingv1.NetworkPolicyPort
		p.Protocol = anyOf(t, "protocol", nil, ptr(corev1.ProtocolUDP), ptr(corev1.ProtocolTCP), ptr(corev1.ProtocolSCTP))
		switch rapid.IntRange(0, 3).Draw(t, "port") {
		case 0:
			p.Port = ptr(intstr.FromInt32(80))
		case 1:
			p.Port, p.EndPort = ptr(intstr.FromInt32(79)), ptr(int32(80))
		case 2:
			p.Port = ptr(intstr.FromString(anyOf(t, "name", "http", "dns")))
		}
		out = append(out, p)
	}
	return out
}

func ptr[T any](v T) *T { return &v }

// sortedPods are the pods in a fixed order.
func (g *worldGen) sortedPods() (out []*Pod) {
	for _, uid := range slices.Sorted(maps.Keys(g.pods)) {
		out = append(out, g.pods[uid])
	}
	return out
}
