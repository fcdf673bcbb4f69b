package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// rendered is a policy as chains, with what the chains look things up in.
type rendered struct {
	chains     map[string][]Rule
	constants  map[Set][]Element // sets that the policy alone defines
	collectors map[string]collectorSpec
}

// collectorSpec is a pair of sets (IPv4, IPv6) filled from pods.
type collectorSpec struct {
	key       string
	namespace string // of the pods that can be in it; "" is any
	sets      [2]Set
	// elements are the pod's, by IP version; nil when the pod is not in it.
	elements func(p *Pod, namespace map[string]string) []Element
}

// policyChain is the chain with a policy's rules for one direction.
func policyChain(key string, d Direction) string { return hashed("policy-"+d.String(), key) }

// render translates a policy into chains and sets. It is pure.
func (p *Policy) render() *rendered {
	out := &rendered{chains: map[string][]Rule{}, constants: map[Set][]Element{}, collectors: map[string]collectorSpec{}}
	for _, d := range directions {
		if !p.isolates[d] {
			continue
		}
		rules := []Rule{}
		for i := range p.rules[d] {
			rules = append(rules, out.allowance(d, &p.rules[d][i])...)
		}
		out.chains[policyChain(p.Key, d)] = rules
	}
	return out
}

// allowance makes a rule for each kind of peer at each kind of port.
func (o *rendered) allowance(d Direction, a *allowance) []Rule {
	var out []Rule
	ports := o.portMatches(a)
	for _, peer := range o.peerMatches(a) {
		for _, port := range ports {
			if peer.Name != "" && port.PodPorts.Name != "" && peer.IPv6 != port.PodPorts.IPv6 {
				continue
			}
			port.Direction, port.Peer = d, peer
			out = append(out, port)
		}
	}
	return out
}

// peerMatches are sets of addresses; one without a name is everybody.
func (o *rendered) peerMatches(a *allowance) []Set {
	if a.anyPeer {
		return []Set{{}}
	}
	var out []Set
	for _, s := range a.selectors {
		spec := selectorSpec(s)
		o.collectors[spec.key] = spec
		out = append(out, spec.sets[:]...)
	}
	for v, spans := range a.blocks {
		if len(spans) == 0 {
			continue
		}
		set := Set{hashed("blocks-"+family(v == 1), fmt.Sprint(spans)), Ranges, v == 1}
		var elements []Element
		for _, s := range spans {
			elements = append(elements, Element{Addr: s.from, To: s.to})
		}
		o.constants[set] = elements
		out = append(out, set)
	}
	return out
}

// portMatches are rules that look at ports only.
func (o *rendered) portMatches(a *allowance) []Rule {
	if a.anyPort {
		return []Rule{{}}
	}
	var out []Rule
	for _, proto := range slices.Sorted(maps.Keys(a.ports)) {
		spans := a.ports[proto]
		if spans[0] == (portSpan{0, 65535}) {
			out = append(out, Rule{Protocol: proto})
			continue
		}
		set := Set{Name: hashed("ports", fmt.Sprint(spans)), Kind: Ports}
		var elements []Element
		for _, s := range spans {
			elements = append(elements, Element{Port: s.from, ToPort: s.to})
		}
		o.constants[set] = elements
		out = append(out, Rule{Protocol: proto, Ports: set})
	}
	for _, n := range a.named {
		spec := namedSpec(n)
		o.collectors[spec.key] = spec
		for _, set := range spec.sets {
			out = append(out, Rule{Protocol: n.protocol, PodPorts: set})
		}
	}
	return out
}

// selectorSpec collects the addresses of the pods that a selector selects.
func selectorSpec(s peerSelector) collectorSpec {
	key := s.String()
	return collectorSpec{
		key: key, namespace: s.namespace,
		sets: [2]Set{{hashed("pods-ip", key), Addresses, false}, {hashed("pods-ip6", key), Addresses, true}},
		elements: func(p *Pod, namespace map[string]string) []Element {
			if !s.matches(p, namespace) {
				return nil
			}
			return eachAddress(p, func(a netip.Addr) []Element { return []Element{{Addr: a}} })
		},
	}
}

// namedSpec collects where pods have a port of that name. It is the same set for both
// directions: the port is the destination's in either.
func namedSpec(n namedPort) collectorSpec {
	key := fmt.Sprintf("port %s/%s", n.name, n.protocol)
	return collectorSpec{
		key:  key,
		sets: [2]Set{{hashed("named-ip", key), PodPorts, false}, {hashed("named-ip6", key), PodPorts, true}},
		elements: func(p *Pod, _ map[string]string) []Element {
			return eachAddress(p, func(a netip.Addr) (out []Element) {
				for _, port := range p.Ports {
					if port.Name == n.name && port.Protocol == n.protocol {
						out = append(out, Element{Addr: a, Port: port.Port})
					}
				}
				return out
			})
		},
	}
}

// eachAddress collects what one gives for each address that the pod has.
func eachAddress(p *Pod, one func(netip.Addr) []Element) (out []Element) {
	if p.Finished {
		return nil
	}
	for _, a := range p.IPs {
		out = append(out, one(a)...)
	}
	slices.SortFunc(out, func(a, b Element) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port))
	})
	return slices.Compact(out)
}
