package lan

import (
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
)

// AnnotationSubnets is on Nodes that announce: the subnets of their links, joined by commas.
const AnnotationSubnets = "lan.vk-metal.io/subnets"

// Node is what of a Node decides who announces.
type Node struct {
	Name    string
	Addrs   []netip.Addr   // InternalIPs
	Subnets []netip.Prefix // on whose links it announces; none: it does not
	// Ready nodes announce; Excluded ones never do: the label
	// node.kubernetes.io/exclude-from-external-load-balancers.
	Ready, Excluded bool
}

// Service is what of a Service and its endpoints decides who announces its addresses.
type Service struct {
	Name  string // namespace/name
	Addrs []netip.Addr
	// Local is externalTrafficPolicy: Local.
	Local bool
	// Nodes have a ready endpoint, sorted by name.
	Nodes []string
}

// Inputs of Plan.
type Inputs struct {
	Nodes    []Node
	Services []Service
}

// Address says who announces one address.
type Address struct {
	Addr netip.Addr
	// Node announces; Standby watches it and steps in. Empty is nobody.
	Node, Standby string
	Services      []string
	// Refused is why nobody may.
	Refused string
}

// Plan chooses for each address of a Service with a ready endpoint: the first two of the
// nodes that can serve it by rendezvous hash. A node's coming or going moves only the
// addresses that it had or gets. Addresses come sorted.
func Plan(in Inputs) []Address {
	owner := map[netip.Addr]string{}
	for i := range in.Nodes {
		for _, a := range in.Nodes[i].Addrs {
			owner[a] = in.Nodes[i].Name
		}
	}
	users := map[netip.Addr][]*Service{}
	for i := range in.Services {
		s := &in.Services[i]
		if len(s.Nodes) == 0 {
			continue
		}
		for _, a := range s.Addrs {
			users[a] = append(users[a], s)
		}
	}
	out := make([]Address, 0, len(users))
	for a, services := range users {
		choice := Address{Addr: a}
		for _, s := range services {
			choice.Services = append(choice.Services, s.Name)
		}
		slices.Sort(choice.Services)
		if node, taken := owner[a]; taken {
			choice.Refused = "it is the address of node " + node
		} else {
			choice.Node, choice.Standby = rendezvous(a, candidates(a, services, in.Nodes))
		}
		out = append(out, choice)
	}
	slices.SortFunc(out, func(x, y Address) int { return x.Addr.Compare(y.Addr) })
	return out
}

// candidates are the nodes on a link with the address that serve the most of the Services
// that share it.
func candidates(a netip.Addr, services []*Service, nodes []Node) (names []string) {
	most := 1
	for i := range nodes {
		n := &nodes[i]
		if !n.Ready || n.Excluded || !slices.ContainsFunc(n.Subnets, func(p netip.Prefix) bool { return p.Contains(a) }) {
			continue
		}
		served := 0
		for _, s := range services {
			if _, here := slices.BinarySearch(s.Nodes, n.Name); here || !s.Local {
				served++
			}
		}
		if served > most {
			most, names = served, nil
		}
		if served == most {
			names = append(names, n.Name)
		}
	}
	return names
}

// rendezvous gives the two nodes with the highest hash of address and name.
func rendezvous(a netip.Addr, names []string) (first, second string) {
	h := fnv.New64a()
	_, _ = h.Write(a.AsSlice())
	seed := h.Sum64()
	var best, next uint64
	for _, name := range names {
		h.Reset()
		_, _ = h.Write([]byte(name))
		score := mix(seed ^ mix(h.Sum64()))
		switch {
		case first == "" || score > best || score == best && name < first:
			second, next = first, best
			first, best = name, score
		case second == "" || score > next || score == next && name < second:
			second, next = name, score
		}
	}
	return first, second
}

// mix spreads FNV's differences over all bits (the finalizer of splitmix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// FormatSubnets is the value of AnnotationSubnets.
func FormatSubnets(list []netip.Prefix) string {
	texts := make([]string, 0, len(list))
	for _, p := range list {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ",")
}

// ParseSubnets reads AnnotationSubnets; what is no subnet is left out.
func ParseSubnets(text string) (list []netip.Prefix) {
	for part := range strings.SplitSeq(text, ",") {
		if p, err := netip.ParsePrefix(strings.TrimSpace(part)); err == nil {
			list = append(list, p.Masked())
		}
	}
	return list
}
