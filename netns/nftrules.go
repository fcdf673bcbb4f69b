package netns

import (
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers: 1 and 2 are 16 bytes wide, r32(n) is the n-th of the sixteen 4-byte ones
// that overlay them.
const (
	reg1 = unix.NFT_REG_1
	reg2 = unix.NFT_REG_2
)

func r32(n uint32) uint32 { return unix.NFT_REG32_00 + n }

// ipv describes what differs between the IP versions in a rule.
type ipv struct {
	proto                byte // NFPROTO_IPV4, NFPROTO_IPV6
	saddr, daddr, length uint32
	regs                 uint32 // 4-byte registers of an address
	addr                 nftables.SetDatatype
	loopback, mask       []byte
	pods, local, noMasq  string
	hairpin, port, any   string
}

var (
	ipv4 = ipv{
		proto: unix.NFPROTO_IPV4, saddr: 12, daddr: 16, length: 4, regs: 1, addr: nftables.TypeIPAddr,
		loopback: []byte{127, 0, 0, 0}, mask: []byte{255, 0, 0, 0},
		pods: setPods4, local: setLocal4, noMasq: setNoMasq4, hairpin: setHairpin4, port: mapHostPort4, any: mapAnyPort4,
	}
	ipv6 = ipv{
		proto: unix.NFPROTO_IPV6, saddr: 8, daddr: 24, length: 16, regs: 4, addr: nftables.TypeIP6Addr,
		loopback: []byte{15: 1},
		pods:     setPods6, local: setLocal6, noMasq: setNoMasq6, hairpin: setHairpin6, port: mapHostPort6, any: mapAnyPort6,
	}
	versions = []ipv{ipv4, ipv6}
)

type exprs = []expr.Any

func rule(parts ...exprs) exprs {
	var all exprs
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func (v ipv) match() exprs {
	return exprs{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{v.proto}},
	}
}

func (v ipv) load(offset, reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: v.length}
}

// loopbackAt matches a loopback address at the offset.
func (v ipv) loopbackAt(offset uint32) exprs {
	e := exprs{v.load(offset, reg1)}
	if v.mask != nil {
		e = append(e, &expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: v.length, Mask: v.mask, Xor: make([]byte, v.length)})
	}
	return append(e, &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: v.loopback})
}

func group(key expr.MetaKey, op expr.CmpOp) exprs {
	return exprs{
		&expr.Meta{Key: key, Register: reg1},
		&expr.Cmp{Op: op, Register: reg1, Data: binaryutil.NativeEndian.PutUint32(LinkGroup)},
	}
}

func in(set string, reg uint32) expr.Any { return &expr.Lookup{SourceRegister: reg, SetName: set} }

func verdict(k expr.VerdictKind) exprs { return exprs{&expr.Verdict{Kind: k}} }

func masquerade() exprs { return exprs{&expr.Masq{FullyRandom: true}} }

// antispoofRules let through what comes from a pod's link only with that pod's own
// addresses, and nothing for the host's loopback (host ports need route_localnet).
func antispoofRules() []exprs {
	rules := []exprs{rule(group(expr.MetaKeyIIFGROUP, expr.CmpOpNeq), verdict(expr.VerdictAccept))}
	rules = append(rules, rule(ipv4.match(), ipv4.loopbackAt(ipv4.daddr), verdict(expr.VerdictDrop)))
	for _, v := range versions {
		rules = append(rules, rule(v.match(), exprs{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1}, v.load(v.saddr, reg2), in(v.pods, reg1),
		}, verdict(expr.VerdictAccept)))
	}
	return append(rules, rule(exprs{&expr.Counter{}}, verdict(expr.VerdictDrop)))
}

// hostPortRules translate the destination by the maps; the exact host address first.
// Not for ::1: the kernel lets no packet with it leave the host, so that a client there
// would wait for nothing instead of being refused.
func hostPortRules() []exprs {
	rules := []exprs{rule(ipv6.match(), ipv6.loopbackAt(ipv6.daddr), verdict(expr.VerdictReturn))}
	for _, v := range versions {
		proto := &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: r32(0)}
		port := func(reg uint32) expr.Any {
			return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
		}
		dnat := func(m string) exprs {
			return exprs{
				&expr.Lookup{SourceRegister: reg1, DestRegister: reg1, IsDestRegSet: true, SetName: m},
				&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(v.proto), RegAddrMin: reg1, RegProtoMin: r32(v.regs)},
			}
		}
		rules = append(rules,
			rule(v.match(), exprs{proto, v.load(v.daddr, r32(1)), port(r32(1 + v.regs))}, dnat(v.port)),
			rule(v.match(), exprs{proto, port(r32(1))}, dnat(v.any)))
	}
	return rules
}

// toHostPorts sends what is addressed to this host through the host port chain.
func toHostPorts() []exprs {
	return []exprs{{
		&expr.Fib{Register: reg1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
		&expr.Verdict{Kind: expr.VerdictJump, Chain: "hostports"},
	}}
}

// postroutingRules masquerade a pod that reaches itself by a host port, the host's
// loopback towards pods, and (if asked) pods towards the world.
func postroutingRules(world bool) []exprs {
	var rules []exprs
	for _, v := range versions {
		rules = append(rules,
			rule(v.match(), exprs{v.load(v.saddr, reg1), v.load(v.daddr, r32(v.regs)), in(v.hairpin, reg1)}, masquerade()))
		if v.proto == unix.NFPROTO_IPV4 {
			rules = append(rules, rule(group(expr.MetaKeyOIFGROUP, expr.CmpOpEq), v.match(), v.loopbackAt(v.saddr), masquerade()))
		}
		if !world {
			continue
		}
		rules = append(rules, rule(group(expr.MetaKeyOIFGROUP, expr.CmpOpNeq), v.match(),
			exprs{v.load(v.saddr, reg1), in(v.local, reg1), v.load(v.daddr, reg1), &expr.Lookup{SourceRegister: reg1, SetName: v.noMasq, Invert: true}},
			masquerade()))
	}
	return rules
}

// chainSpec is one chain of the table with its rules; typ is empty for a plain chain.
type chainSpec struct {
	name  string
	typ   nftables.ChainType
	hook  *nftables.ChainHook
	prio  *nftables.ChainPriority
	rules []exprs
}

func chains(world bool) []chainSpec {
	filter, nat := nftables.ChainTypeFilter, nftables.ChainTypeNAT
	return []chainSpec{
		{name: "hostports", rules: hostPortRules()},
		{name: "antispoof", typ: filter, hook: nftables.ChainHookPrerouting, prio: nftables.ChainPriorityRaw, rules: antispoofRules()},
		{name: "prerouting", typ: nat, hook: nftables.ChainHookPrerouting, prio: nftables.ChainPriorityNATDest, rules: toHostPorts()},
		{name: "output", typ: nat, hook: nftables.ChainHookOutput, prio: nftables.ChainPriorityNATDest, rules: toHostPorts()},
		{name: "postrouting", typ: nat, hook: nftables.ChainHookPostrouting, prio: nftables.ChainPriorityNATSource, rules: postroutingRules(world)},
	}
}

// sets are the table's sets and maps, without elements.
func sets(t *nftables.Table) []*nftables.Set {
	var out []*nftables.Set
	add := func(name string, interval bool, key, data []nftables.SetDatatype) {
		s := &nftables.Set{Table: t, Name: name, Interval: interval, KeyType: nftables.MustConcatSetType(key...), Concatenation: len(key) > 1}
		if data != nil {
			s.IsMap, s.DataType = true, nftables.MustConcatSetType(data...)
		}
		out = append(out, s)
	}
	type types = []nftables.SetDatatype
	proto, port := nftables.TypeInetProto, nftables.TypeInetService
	for _, v := range versions {
		add(v.pods, false, types{nftables.TypeIFName, v.addr}, nil)
		add(v.hairpin, false, types{v.addr, v.addr}, nil)
		add(v.local, true, types{v.addr}, nil)
		add(v.noMasq, true, types{v.addr}, nil)
		add(v.port, false, types{proto, v.addr, port}, types{v.addr, port})
		add(v.any, false, types{proto, port}, types{v.addr, port})
	}
	return out
}
