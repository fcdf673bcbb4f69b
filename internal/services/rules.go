package services

import (
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers: reg1 is 16 bytes wide, r32(n) is the n-th of the sixteen 4-byte ones that
// overlay the wide ones.
const reg1 = unix.NFT_REG_1

func r32(n uint32) uint32 { return unix.NFT_REG32_00 + n }

// masqueradeMark is the bit that marks packets whose source is to be replaced: the one
// that Kubernetes' own proxy uses, so that other programs leave it alone.
const masqueradeMark = 0x4000

// Priorities of our hooks. Pods' anti-spoofing comes before (raw), pods' host ports after
// our translation, pods' masquerade after ours; see docs/decisions.
const (
	priorityLimits    = -110
	priorityNAT       = -101
	priorityUnserved  = -90
	priorityPostroute = 99
)

// Conntrack state and status bits of the kernel.
const (
	ctStateInvalid = 1 << 0
	ctStateNew     = 1 << 3
	ctStatusDNAT   = 1 << 5
)

// family is one of the two tables: what differs between the IP versions.
type family struct {
	ipv6         bool
	table        *nftables.Table
	saddr, daddr uint32 // offsets in the header
	length       uint32 // of an address in bytes
	regs         uint32 // 4-byte registers of an address
	addr         nftables.SetDatatype
	loopback     []byte
	mask         []byte
	podGroup     uint32 // link group of pods' interfaces
	closing      *nftables.NamedObj
}

func newFamily(ipv6 bool, podGroup uint32) *family {
	if ipv6 {
		return &family{
			ipv6: true, table: &nftables.Table{Family: nftables.TableFamilyIPv6, Name: tableName}, saddr: 8, daddr: 24, length: 16, regs: 4,
			addr: nftables.TypeIP6Addr, loopback: []byte{15: 1}, podGroup: podGroup,
		}
	}
	return &family{
		table: &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName}, saddr: 12, daddr: 16, length: 4, regs: 1,
		addr: nftables.TypeIPAddr, loopback: []byte{127, 0, 0, 0}, mask: []byte{255, 0, 0, 0}, podGroup: podGroup,
	}
}

type exprs = []expr.Any

func rule(parts ...exprs) exprs {
	var all exprs
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func (f *family) load(offset, reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.length}
}

func in(set string) expr.Any { return &expr.Lookup{SourceRegister: reg1, SetName: set} }

// vmap leaves the chain with the verdict of the key in reg1, if there is one.
func vmap(name string) expr.Any {
	return &expr.Lookup{SourceRegister: reg1, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: name}
}

func verdict(kind expr.VerdictKind, chain ...string) exprs {
	return exprs{&expr.Verdict{Kind: kind, Chain: strings.Join(chain, "")}}
}

// key loads the key of the maps with this prefix into the registers from reg1 on; next is
// the first free one.
func (f *family) key(prefix string) (e exprs, next uint32) {
	if prefix == "" {
		e, next = exprs{f.load(f.daddr, r32(0))}, f.regs
	}
	return append(e,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: r32(next)},
		&expr.Payload{DestRegister: r32(next + 1), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	), next + 2
}

// dispatch is a rule that goes where the map says.
func (f *family) dispatch(prefix, name string) exprs {
	key, _ := f.key(prefix)
	return rule(key, exprs{vmap(prefix + name)})
}

// dnat translates to one of n slots from the first on.
func (f *family) dnat(prefix string, n, first uint32) exprs {
	key, next := f.key(prefix)
	return rule(key, exprs{
		&expr.Numgen{Register: r32(next), Modulus: n, Type: unix.NFT_NG_RANDOM, Offset: first},
		&expr.Lookup{SourceRegister: reg1, DestRegister: reg1, IsDestRegSet: true, SetName: prefix + mapSlots},
	}, f.translate())
}

// translate is the destination NAT to the address and port in the registers from reg1 on.
func (f *family) translate() exprs {
	proto := uint32(unix.NFPROTO_IPV4)
	if f.ipv6 {
		proto = unix.NFPROTO_IPV6
	}
	e := exprs{&expr.NAT{Type: expr.NATTypeDestNAT, Family: proto, RegAddrMin: reg1, RegProtoMin: r32(f.regs)}}
	if f.closing != nil {
		e = append(exprs{&expr.Objref{Type: int(f.closing.Type), Name: f.closing.Name}}, e...)
	}
	return e
}

func ne32(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// markBits sets, or clears, the mark that asks for masquerading.
func markBits(mask, xor uint32) exprs {
	return exprs{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: ne32(mask), Xor: ne32(xor)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg1},
	}
}

func mark() exprs { return markBits(^uint32(masqueradeMark), masqueradeMark) }

// bits matches if any of the bits is set in what load puts into reg1.
func bits(load expr.Any, mask uint32) exprs {
	return exprs{
		load,
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: ne32(mask), Xor: ne32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: ne32(0)},
	}
}

func ctState(bit uint32) exprs { return bits(&expr.Ct{Key: expr.CtKeySTATE, Register: reg1}, bit) }

// fromPods matches what came in by a pod's interface (or did not).
func (f *family) fromPods(op expr.CmpOp) exprs { return f.podLink(expr.MetaKeyIIFGROUP, op) }

func (f *family) podLink(key expr.MetaKey, op expr.CmpOp) exprs {
	return exprs{
		&expr.Meta{Key: key, Register: reg1},
		&expr.Cmp{Op: op, Register: reg1, Data: ne32(f.podGroup)},
	}
}

func local(source bool) exprs {
	return exprs{
		&expr.Fib{Register: reg1, FlagSADDR: source, FlagDADDR: !source, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: ne32(unix.RTN_LOCAL)},
	}
}

// toNode matches what is for an address of this node, its loopback left out.
func (f *family) toNode() exprs {
	e := append(local(false), f.load(f.daddr, reg1))
	if f.mask != nil {
		e = append(e, &expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: f.length, Mask: f.mask, Xor: make([]byte, f.length)})
	}
	return append(e, &expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: f.loopback})
}

func (f *family) toClusterIPs() exprs { return exprs{f.load(f.daddr, reg1), in(setClusterIPs)} }

func (f *family) hairpin() exprs {
	return rule(bits(&expr.Ct{Key: expr.CtKeySTATUS, Register: reg1}, ctStatusDNAT),
		exprs{f.load(f.saddr, r32(0)), f.load(f.daddr, r32(f.regs)), in(setHairpins)})
}

func masquerade() exprs { return exprs{&expr.Masq{FullyRandom: true}} }

// limited drops what a load balancer's source ranges do not allow.
func (f *family) limited() exprs {
	key, next := f.key("")
	return rule(ctState(ctStateNew), key, exprs{in(setFirewalled)}, key,
		exprs{f.load(f.saddr, r32(next)), &expr.Lookup{SourceRegister: reg1, SetName: setSources, Invert: true}}, verdict(expr.VerdictDrop))
}

// reject answers as a host without a listener would.
func (f *family) reject() []exprs {
	code := uint8(3) // ICMP port unreachable
	if f.ipv6 {
		code = 4
	}
	return []exprs{
		rule(exprs{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
		}),
		{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: code}},
	}
}

// chainSpec is one chain of a table with its rules; typ is empty for a plain chain.
type chainSpec struct {
	name  string
	typ   nftables.ChainType
	hook  *nftables.ChainHook
	prio  nftables.ChainPriority
	rules []exprs
}

func (s *chainSpec) chain(t *nftables.Table) *nftables.Chain {
	c := &nftables.Chain{Table: t, Name: s.name, Type: s.typ, Hooknum: s.hook}
	if s.hook != nil {
		c.Priority = &s.prio
	}
	return c
}

// chains are the fixed chains, in an order in which each comes after those that it names.
func (f *family) chains() []chainSpec {
	filter, nat := nftables.ChainTypeFilter, nftables.ChainTypeNAT
	pre, out, post := nftables.ChainHookPrerouting, nftables.ChainHookOutput, nftables.ChainHookPostrouting
	unserved := []exprs{
		rule(ctState(ctStateNew), verdict(expr.VerdictJump, "refuse")),
	}
	// What the node sends to its own node ports comes in again by the loopback interface, and is refused
	// there: on its way out a UDP sender would see EPERM instead of a refusal.
	unservedNodePorts := rule(ctState(ctStateNew), f.toNode(), f.dispatch(nodePorts, mapUnserved))
	// What the connection tracking cannot place is not translated back; a client that gets
	// it from the endpoint's own address answers with a reset and loses its connection.
	// Both directions of a pod's connections pass here, so nothing good is lost.
	invalid := func(key expr.MetaKey) exprs {
		return rule(ctState(ctStateInvalid), f.podLink(key, expr.CmpOpEq), verdict(expr.VerdictDrop))
	}
	return []chainSpec{
		{name: chainReject, rules: f.reject()},
		{name: chainDrop, rules: []exprs{verdict(expr.VerdictDrop)}},
		{name: "refuse", rules: []exprs{
			f.dispatch("", mapUnserved),
			rule(f.toClusterIPs(), verdict(expr.VerdictGoto, chainReject)),
		}},
		{name: "translate", rules: []exprs{
			f.dispatch("", mapServices),
			rule(f.toNode(), f.dispatch(nodePorts, mapServices)),
		}},
		{name: "limits-prerouting", typ: filter, hook: pre, prio: priorityLimits, rules: []exprs{f.limited()}},
		{name: "limits-output", typ: filter, hook: out, prio: priorityLimits, rules: []exprs{f.limited()}},
		{name: "prerouting", typ: nat, hook: pre, prio: priorityNAT, rules: []exprs{
			rule(f.toClusterIPs(), f.fromPods(expr.CmpOpNeq), mark()), verdict(expr.VerdictJump, "translate"),
		}},
		{name: "output", typ: nat, hook: out, prio: priorityNAT, rules: []exprs{
			rule(f.toClusterIPs(), mark()), verdict(expr.VerdictJump, "translate"),
		}},
		{name: "unserved-prerouting", typ: filter, hook: pre, prio: priorityUnserved, rules: append(slices.Clone(unserved), unservedNodePorts)},
		{name: "unserved-output", typ: filter, hook: out, prio: priorityUnserved, rules: unserved},
		{name: "invalid", typ: filter, hook: nftables.ChainHookForward, prio: 0, rules: []exprs{
			invalid(expr.MetaKeyIIFGROUP), invalid(expr.MetaKeyOIFGROUP),
		}},
		{name: "postrouting", typ: nat, hook: post, prio: priorityPostroute, rules: []exprs{
			rule(bits(&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1}, masqueradeMark), markBits(^uint32(masqueradeMark), 0), masquerade()),
			rule(f.hairpin(), masquerade()),
		}},
	}
}

// numberedChain is the chain that a name of numbered() stands for; false for other names.
func (f *family) numberedChain(name string) (chainSpec, bool) {
	rest, isNodePort := strings.CutPrefix(name, nodePorts)
	kind, text, _ := strings.Cut(rest, "-")
	number, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return chainSpec{}, false
	}
	prefix, n := "", uint32(number)
	if isNodePort {
		prefix = nodePorts
	}
	spec := chainSpec{name: name}
	switch kind {
	case chainCluster:
		spec.rules = []exprs{f.dnat(prefix, n, 0)}
	case chainExternal:
		spec.rules = []exprs{mark(), f.dnat(prefix, n, 0)}
	case chainLocal:
		spec.rules = []exprs{
			rule(f.fromPods(expr.CmpOpEq), f.dispatch(prefix, mapShortcuts)),
			rule(local(true), mark(), f.dispatch(prefix, mapShortcuts)),
		}
		if n == 0 {
			spec.rules = append(spec.rules, verdict(expr.VerdictDrop))
		} else {
			spec.rules = append(spec.rules, f.dnat(prefix, n, maxSlots))
		}
	default:
		return chainSpec{}, false
	}
	return spec, true
}

// sets are the table's fixed sets and maps, without elements.
func (f *family) sets() []*nftables.Set {
	type types = []nftables.SetDatatype
	var out []*nftables.Set
	add := func(name string, key types, data ...nftables.SetDatatype) *nftables.Set {
		s := &nftables.Set{Table: f.table, Name: name, KeyType: nftables.MustConcatSetType(key...), Concatenation: len(key) > 1}
		if len(data) > 0 {
			s.IsMap, s.DataType = true, data[0]
			if len(data) > 1 {
				s.DataType = nftables.MustConcatSetType(data...)
			}
		}
		out = append(out, s)
		return s
	}
	proto, port, slot := nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeMark
	add(setClusterIPs, types{f.addr})
	add(setHairpins, types{f.addr, f.addr})
	add(setFirewalled, types{f.addr, proto, port})
	add(setSources, types{f.addr, proto, port, f.addr}).Interval = true
	for _, prefix := range []string{"", nodePorts} {
		key := types{f.addr, proto, port}
		if prefix != "" {
			key = types{proto, port}
		}
		add(prefix+mapServices, key, nftables.TypeVerdict)
		add(prefix+mapShortcuts, key, nftables.TypeVerdict)
		add(prefix+mapUnserved, key, nftables.TypeVerdict)
		add(prefix+mapSlots, append(append(types{}, key...), slot), f.addr, port)
	}
	return out
}
