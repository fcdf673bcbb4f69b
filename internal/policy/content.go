package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// SetKind is what a set of the table holds.
type SetKind uint8

// The kinds of sets.
const (
	Addresses SetKind = iota // addresses of pods
	Ranges                   // ranges of addresses
	Ports                    // ranges of ports
	PodPorts                 // address . port
	Pairs                    // address . address
)

// Set names one set of the table.
type Set struct {
	Name string
	Kind SetKind
	IPv6 bool
}

// Element is an element of a set; which fields are used depends on the set's kind.
type Element struct {
	Addr, To     netip.Addr
	Port, ToPort uint16
}

// String shows the element as nftables does.
func (e Element) String() string {
	var parts []string
	if e.Addr.IsValid() {
		parts = append(parts, e.Addr.String())
	}
	if e.To.IsValid() {
		parts[0] += "-" + e.To.String()
	}
	switch {
	case e.ToPort > e.Port:
		parts = append(parts, fmt.Sprintf("%d-%d", e.Port, e.ToPort))
	case e.Port > 0 || e.ToPort > 0 || !e.Addr.IsValid():
		parts = append(parts, fmt.Sprint(e.Port))
	}
	return strings.Join(parts, ".")
}

// Rule is one rule of a chain. An empty name matches everything.
type Rule struct {
	// Peer is looked at in the source address for ingress, in the destination for egress.
	Direction Direction
	Peer      Set
	Protocol  Protocol // 0: any
	Ports     Set      // of destination ports
	PodPorts  Set      // of destination address and port
	// Jump is the chain to try; without one the packet is allowed.
	Jump string
}

// String shows the rule much as nftables does.
func (r Rule) String() string {
	var b strings.Builder
	if r.Peer.Name != "" {
		fmt.Fprintf(&b, "%s %s @%s ", family(r.Peer.IPv6), [...]string{"saddr", "daddr"}[r.Direction], r.Peer.Name)
	}
	if r.PodPorts.Name != "" {
		fmt.Fprintf(&b, "%s %s daddr . dport @%s ", r.Protocol, family(r.PodPorts.IPv6), r.PodPorts.Name)
	} else if r.Protocol != 0 {
		fmt.Fprintf(&b, "%s ", r.Protocol)
		if r.Ports.Name != "" {
			fmt.Fprintf(&b, "dport @%s ", r.Ports.Name)
		}
	}
	if r.Jump != "" {
		return b.String() + "jump " + r.Jump
	}
	return b.String() + "accept"
}

func family(ipv6 bool) string {
	if ipv6 {
		return "ip6"
	}
	return "ip"
}

// target is a pod's address in one direction.
type target struct {
	direction Direction
	addr      netip.Addr
}

// Content is what the table has to hold besides its fixed chains.
type Content struct {
	sets   map[Set]map[Element]bool
	chains map[string][]Rule
	// isolated leads to the chain with the policies of a pod; who is not allowed there is dropped.
	isolated map[target]string
}

func newContent() *Content {
	return &Content{sets: map[Set]map[Element]bool{}, chains: map[string][]Rule{}, isolated: map[target]string{}}
}

// Sets of every table: addresses of isolated pods, and each pod of this node with itself.
func isolatedSet(ipv6 bool) Set {
	return Set{"isolated-" + family(ipv6), Addresses, ipv6}
}

func selfSet(ipv6 bool) Set { return Set{"self-" + family(ipv6), Pairs, ipv6} }

// String prints the content in a fixed order.
func (c *Content) String() string {
	var b strings.Builder
	for _, s := range slices.SortedFunc(maps.Keys(c.sets), func(a, b Set) int { return strings.Compare(a.Name, b.Name) }) {
		var elements []string
		for e := range c.sets[s] {
			elements = append(elements, e.String())
		}
		slices.Sort(elements)
		fmt.Fprintf(&b, "set %s { %s }\n", s.Name, strings.Join(elements, ", "))
	}
	for _, name := range slices.Sorted(maps.Keys(c.chains)) {
		fmt.Fprintf(&b, "chain %s {\n", name)
		for _, r := range c.chains[name] {
			fmt.Fprintf(&b, "\t%s\n", r)
		}
		b.WriteString("}\n")
	}
	for _, t := range slices.SortedFunc(maps.Keys(c.isolated), func(a, b target) int {
		return strings.Compare(a.direction.String()+a.addr.String(), b.direction.String()+b.addr.String())
	}) {
		fmt.Fprintf(&b, "%s %s: %s\n", t.direction, t.addr, c.isolated[t])
	}
	return b.String()
}

// packet is the first of a connection, after the translation of Services.
type packet struct {
	from, to netip.Addr
	protocol Protocol
	port     uint16 // of the destination
}

// allows says what the kernel does with a packet, by the same content.
func (c *Content) allows(p packet) bool {
	if p.from == p.to {
		return true
	}
	for _, t := range []target{{Egress, p.from}, {Ingress, p.to}} {
		if chain, isolated := c.isolated[t]; isolated && !c.chainAllows(chain, p) {
			return false
		}
	}
	return true
}

func (c *Content) chainAllows(chain string, p packet) bool {
	return slices.ContainsFunc(c.chains[chain], func(r Rule) bool {
		if !c.matches(r, p) {
			return false
		}
		return r.Jump == "" || c.chainAllows(r.Jump, p)
	})
}

func (c *Content) matches(r Rule, p packet) bool {
	peer := p.from
	if r.Direction == Egress {
		peer = p.to
	}
	switch {
	case r.Protocol != 0 && r.Protocol != p.protocol:
		return false
	case r.PodPorts.Name != "" && !c.sets[r.PodPorts][Element{Addr: p.to, Port: p.port}]:
		return false
	case r.Ports.Name != "" && !c.inPorts(r.Ports, p.port):
		return false
	}
	return r.Peer.Name == "" || c.hasPeer(r.Peer, peer)
}

func (c *Content) inPorts(s Set, port uint16) bool {
	for e := range c.sets[s] {
		if e.Port <= port && port <= e.ToPort {
			return true
		}
	}
	return false
}

func (c *Content) hasPeer(s Set, a netip.Addr) bool {
	if s.Kind == Addresses {
		return c.sets[s][Element{Addr: a}]
	}
	for e := range c.sets[s] {
		if s.IPv6 == a.Is6() && !a.Less(e.Addr) && !e.To.Less(a) {
			return true
		}
	}
	return false
}

// hashed is a name for something that is told apart by its text.
func hashed(prefix, text string) string {
	sum := sha256.Sum256([]byte(text))
	return prefix + "-" + hex.EncodeToString(sum[:8])
}
