package policy

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const tableName = "vk-metal-policy"

// Fixed chains that others lead to: what is not allowed ends there, and is counted.
const deniedChain = "denied-"

// Maps of the table: address → the chain with the policies of that pod.
func isolatedMap(d Direction, ipv6 bool) Set {
	return Set{d.String() + "-" + family(ipv6), Addresses, ipv6}
}

// Priorities of our hooks: Services and host ports are translated long before (they are in
// prerouting), so that rules see the pod's address and port.
const (
	priorityEgress  = -12
	priorityIngress = -11
)

const reg1 = unix.NFT_REG_1

func r32(n uint32) uint32 { return unix.NFT_REG32_00 + n }

type exprs = []expr.Any

func rule(parts ...exprs) exprs {
	var all exprs
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func ne32(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// addressOf loads an address of the packet; size is the number of 4-byte registers.
func addressOf(ipv6, source bool, reg uint32) expr.Any {
	p := &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader}
	switch {
	case ipv6 && source:
		p.Offset, p.Len = 8, 16
	case ipv6:
		p.Offset, p.Len = 24, 16
	case source:
		p.Offset, p.Len = 12, 4
	default:
		p.Offset, p.Len = 16, 4
	}
	return p
}

func regs(ipv6 bool) uint32 {
	if ipv6 {
		return 4
	}
	return 1
}

func isFamily(ipv6 bool) exprs {
	proto := byte(unix.NFPROTO_IPV4)
	if ipv6 {
		proto = unix.NFPROTO_IPV6
	}
	return exprs{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg1}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{proto}}}
}

func isProtocol(p Protocol) exprs {
	return exprs{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{byte(p)}}}
}

func destinationPort(reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

func in(s Set) expr.Any { return &expr.Lookup{SourceRegister: reg1, SetName: s.Name} }

func verdict(kind expr.VerdictKind, chain string) exprs {
	return exprs{&expr.Verdict{Kind: kind, Chain: chain}}
}

func ctState(mask uint32) exprs {
	return exprs{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: ne32(mask), Xor: ne32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: ne32(0)},
	}
}

// Connection tracking states, as bits.
const (
	ctEstablished = 1 << 1
	ctRelated     = 1 << 2
	ctNew         = 1 << 3
)

func established() exprs {
	return rule(ctState(ctEstablished|ctRelated), verdict(expr.VerdictAccept, ""))
}

// midStream matches TCP that the connection tracking has no entry for and that does not
// begin a connection: what is left of a flow that was cut, seen from either end.
func midStream() exprs {
	const flags, begin = 0x17, 0x02 // FIN SYN RST ACK; SYN
	return rule(ctState(ctNew), isProtocol(unix.IPPROTO_TCP), exprs{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 1, Mask: []byte{flags}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: []byte{begin}},
	})
}

// remnants end cut flows for good: an isolated pod gets a reset, and what is sent to it is
// dropped. Without that its answer would open the flow again, the other way round.
func remnants(source bool) (out []exprs) {
	end := verdict(expr.VerdictDrop, "")
	if source {
		end = exprs{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
	}
	for _, ipv6 := range []bool{false, true} {
		out = append(out, rule(midStream(), isFamily(ipv6), exprs{addressOf(ipv6, source, reg1), in(isolatedSet(ipv6))}, end))
	}
	return out
}

// dispatch sends packets of isolated pods to their chain, unless they talk to themselves.
func dispatch(d Direction) (out []exprs) {
	for _, ipv6 := range []bool{false, true} {
		out = append(out,
			rule(isFamily(ipv6), exprs{addressOf(ipv6, true, r32(0)), addressOf(ipv6, false, r32(regs(ipv6))), in(selfSet(ipv6))}, verdict(expr.VerdictAccept, "")),
			rule(isFamily(ipv6), exprs{
				addressOf(ipv6, d == Egress, reg1),
				&expr.Lookup{SourceRegister: reg1, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: isolatedMap(d, ipv6).Name},
			}))
	}
	return out
}

// notFromPods lets everything pass that does not come in by a pod's link.
func notFromPods(group uint32) exprs {
	return exprs{
		&expr.Meta{Key: expr.MetaKeyIIFGROUP, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: ne32(group)},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}
}

// neighbours are router and neighbour discovery, without which there is no IPv6 link.
func neighbours() exprs {
	return rule(isProtocol(unix.IPPROTO_ICMPV6), exprs{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Range{Op: expr.CmpOpEq, Register: reg1, FromData: []byte{133}, ToData: []byte{137}},
	}, verdict(expr.VerdictAccept, ""))
}

// chainSpec is a fixed chain.
type chainSpec struct {
	name  string
	hook  *nftables.ChainHook
	prio  nftables.ChainPriority
	rules []exprs
}

func (s *chainSpec) chain(t *nftables.Table) *nftables.Chain {
	c := &nftables.Chain{Table: t, Name: s.name}
	if s.hook != nil {
		c.Type, c.Hooknum, c.Priority = nftables.ChainTypeFilter, s.hook, &s.prio
	}
	return c
}

// fixedChains are in an order in which each comes after those that it names. From the node
// to its pods everything passes: probes must always work.
func fixedChains(podGroup uint32) []chainSpec {
	denied := []exprs{rule(exprs{&expr.Counter{}}, verdict(expr.VerdictDrop, ""))}
	join := func(lists ...[]exprs) (out []exprs) {
		for _, l := range lists {
			out = append(out, l...)
		}
		return out
	}
	one := func(e exprs) []exprs { return []exprs{e} }
	return []chainSpec{
		{name: deniedChain + Ingress.String(), rules: denied},
		{name: deniedChain + Egress.String(), rules: denied},
		{
			name: "egress-forward", hook: nftables.ChainHookForward, prio: priorityEgress,
			rules: join(one(established()), remnants(true), remnants(false), dispatch(Egress)),
		},
		{
			name: "egress-input", hook: nftables.ChainHookInput, prio: priorityEgress,
			rules: join(one(established()), one(notFromPods(podGroup)), one(neighbours()), remnants(true), dispatch(Egress)),
		},
		{
			name: "ingress-forward", hook: nftables.ChainHookForward, prio: priorityIngress,
			rules: join(one(established()), dispatch(Ingress)),
		},
		{name: "ingress-output", hook: nftables.ChainHookOutput, prio: priorityIngress, rules: join(one(established()), remnants(false))},
	}
}

// exprsOf is the kernel's form of a rule.
func exprsOf(r Rule) exprs {
	var parts []exprs
	for _, s := range []Set{r.Peer, r.PodPorts} {
		if s.Name != "" {
			parts = append(parts, isFamily(s.IPv6))
			break // both are of one family
		}
	}
	if r.Peer.Name != "" {
		parts = append(parts, exprs{addressOf(r.Peer.IPv6, r.Direction == Ingress, reg1), in(r.Peer)})
	}
	if r.Protocol != 0 {
		parts = append(parts, isProtocol(r.Protocol))
	}
	if r.Ports.Name != "" {
		parts = append(parts, exprs{destinationPort(reg1), in(r.Ports)})
	}
	if v := r.PodPorts; v.Name != "" {
		parts = append(parts, exprs{addressOf(v.IPv6, false, r32(0)), destinationPort(r32(regs(v.IPv6))), in(v)})
	}
	if r.Jump != "" {
		return rule(append(parts, verdict(expr.VerdictJump, r.Jump))...)
	}
	return rule(append(parts, verdict(expr.VerdictAccept, ""))...)
}

// fixedMaps are the verdict maps.
func fixedMaps(t *nftables.Table) (out []*nftables.Set) {
	for _, d := range directions {
		for _, ipv6 := range []bool{false, true} {
			out = append(out, kernelMap(t, d, ipv6))
		}
	}
	return out
}

func kernelMap(t *nftables.Table, d Direction, ipv6 bool) *nftables.Set {
	return &nftables.Set{Table: t, Name: isolatedMap(d, ipv6).Name, IsMap: true, KeyType: addressType(ipv6), DataType: nftables.TypeVerdict}
}

func addressType(ipv6 bool) nftables.SetDatatype {
	if ipv6 {
		return nftables.TypeIP6Addr
	}
	return nftables.TypeIPAddr
}

// kernelSet is a set without elements.
func kernelSet(t *nftables.Table, s Set) *nftables.Set {
	out := &nftables.Set{Table: t, Name: s.Name}
	addr := addressType(s.IPv6)
	switch s.Kind {
	case Addresses:
		out.KeyType = addr
	case Ranges:
		out.KeyType, out.Interval = addr, true
	case Ports:
		out.KeyType, out.Interval = nftables.TypeInetService, true
	case PodPorts:
		out.KeyType, out.Concatenation = nftables.MustConcatSetType(addr, nftables.TypeInetService), true
	case Pairs:
		out.KeyType, out.Concatenation = nftables.MustConcatSetType(addr, addr), true
	}
	return out
}

func portBytes(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }

// kernelElements is the kernel's form of an element: a range is a start and, unless it
// reaches to the end, the first value after it.
func kernelElements(s Set, e Element) []nftables.SetElement {
	switch s.Kind {
	case Ranges:
		out := []nftables.SetElement{{Key: e.Addr.AsSlice()}}
		if next := e.To.Next(); next.IsValid() {
			out = append(out, nftables.SetElement{Key: next.AsSlice(), IntervalEnd: true})
		}
		return out
	case Ports:
		out := []nftables.SetElement{{Key: portBytes(e.Port)}}
		if e.ToPort < 65535 {
			out = append(out, nftables.SetElement{Key: portBytes(e.ToPort + 1), IntervalEnd: true})
		}
		return out
	case PodPorts:
		return []nftables.SetElement{{Key: append(append(e.Addr.AsSlice(), portBytes(e.Port)...), 0, 0)}}
	case Pairs:
		return []nftables.SetElement{{Key: append(e.Addr.AsSlice(), e.To.AsSlice()...)}}
	}
	return []nftables.SetElement{{Key: e.Addr.AsSlice()}}
}

func isolatedElement(a netip.Addr, chain string) []nftables.SetElement {
	return []nftables.SetElement{{Key: a.AsSlice(), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}}
}
