package wireguard

import (
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/hostgw"
	"github.com/vk-metal/vk-metal/internal/nft"
)

// guardTable has what routes cannot say: that what the host itself sends to other nodes' pods
// bears an address that their tunnels let in, and, where encryption is required, that nothing
// from or to a pod of the cluster passes by another link than a tunnel or a pod's.
const guardTable = "vk-metal-wireguard"

// guarded is the wanted table; without links there is none.
type guarded struct {
	links  []string       // the tunnels
	pods   uint32         // the group of pods' links
	self   []netip.Prefix // this node's podCIDRs
	ranges []netip.Prefix // kept from leaving and coming in plain; none overlap
}

func (g guarded) same(o guarded) bool {
	return slices.Equal(g.links, o.links) && g.pods == o.pods && slices.Equal(g.self, o.self) && slices.Equal(g.ranges, o.ranges)
}

// protect has the table in place.
func (t *Tunnels) protect(in hostgw.TunnelInputs, fences []netip.Prefix) error {
	g := guarded{links: t.names[:], pods: t.o.PodLinks, self: disjoint(in.Self)}
	if t.o.Mode == Required {
		all := slices.Clone(fences)
		for _, node := range in.Peers {
			all = append(all, node.PodCIDRs...)
		}
		g.ranges = disjoint(all)
	}
	return t.guard.sync(g, in.Full)
}

// disjoint leaves out what lies inside of another prefix, and sorts the rest.
func disjoint(all []netip.Prefix) []netip.Prefix {
	sorted := slices.SortedFunc(slices.Values(all), comparePrefix) // of two that overlap, the wider is first
	var out []netip.Prefix
	for _, p := range sorted {
		if n := len(out); n == 0 || !out[n-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// guard owns the table.
type guard struct {
	mu    sync.Mutex
	conn  *nft.Conn
	have  guarded
	known bool // have is what the kernel has
	rules map[string][]uint64
}

// own says whether an event is of our own making.
func (g *guard) own(portID uint32) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.conn.Own(portID)
}

func (g *guard) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conn.Drop()
}

// sync makes the table as wanted, in one transaction; check asks the kernel instead of
// trusting memory.
func (g *guard) sync(want guarded, check bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.known && g.have.same(want) && (!check || len(want.links) == 0 || g.intact()) {
		return nil
	}
	g.known = false
	c, err := g.conn.Open()
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: guardTable}
	c.AddTable(table)
	c.DelTable(table)
	if len(want.links) > 0 {
		if err := want.build(c, table); err != nil {
			g.conn.Drop() // what is pending must not go with the next transaction
			return err
		}
	}
	if err := g.conn.Commit(); err != nil {
		return err
	}
	g.have, g.known = want, true
	g.rules = g.handles()
	return nil
}

// handles are the kernel's numbers of all rules and sets' sizes.
func (g *guard) handles() map[string][]uint64 {
	out := map[string][]uint64{}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: guardTable}
	for _, chain := range []string{chainOut, chainIn, chainNAT} {
		if got, err := g.conn.Handles(table, chain); err == nil && got != nil {
			out[chain] = got
		}
	}
	for _, v := range versions {
		for _, name := range []string{v.self, v.ranges} {
			if got, err := g.conn.Elements(&nftables.Set{Table: table, Name: name}); err == nil && len(got) > 0 {
				out[name] = []uint64{uint64(len(got))}
			}
		}
	}
	return out
}

// stands says whether a table of before keeps pods' packets in.
func (g *guard) stands() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	have := g.handles()
	return have[chainOut] != nil && have[chainIn] != nil && (have[versions[0].ranges] != nil || have[versions[1].ranges] != nil)
}

// intact says whether nobody touched the table.
func (g *guard) intact() bool {
	return maps.EqualFunc(g.rules, g.handles(), slices.Equal[[]uint64])
}

const (
	chainOut = "leaving"
	chainIn  = "coming"
	chainNAT = "own"
)

// version is what differs between the IP versions.
type version struct {
	proto                byte
	saddr, daddr, length uint32
	key                  nftables.SetDatatype
	self, ranges         string
}

var versions = []version{
	{unix.NFPROTO_IPV4, 12, 16, 4, nftables.TypeIPAddr, "self4", "pods4"},
	{unix.NFPROTO_IPV6, 8, 24, 16, nftables.TypeIP6Addr, "self6", "pods6"},
}

// build has the pending transaction make the table.
func (g guarded) build(c *nftables.Conn, table *nftables.Table) error {
	c.AddTable(table)
	for _, v := range versions {
		for name, prefixes := range map[string][]netip.Prefix{v.self: g.self, v.ranges: g.ranges} {
			set := &nftables.Set{Table: table, Name: name, KeyType: v.key, Interval: true}
			if err := nft.AddSet(c, set, v.elements(prefixes)...); err != nil {
				return err
			}
		}
	}
	filter, nat := nftables.ChainTypeFilter, nftables.ChainTypeNAT
	for _, spec := range []struct {
		name  string
		kind  nftables.ChainType
		hook  *nftables.ChainHook
		prio  *nftables.ChainPriority
		rules [][]expr.Any
	}{
		{chainIn, filter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, g.plain(expr.MetaKeyIIFNAME, expr.MetaKeyIIFGROUP)},
		{chainOut, filter, nftables.ChainHookPostrouting, nftables.ChainPriorityFilter, g.plain(expr.MetaKeyOIFNAME, expr.MetaKeyOIFGROUP)},
		{chainNAT, nat, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, g.own()},
	} {
		chain := c.AddChain(&nftables.Chain{Table: table, Name: spec.name, Type: spec.kind, Hooknum: spec.hook, Priority: spec.prio})
		for _, rule := range spec.rules {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: rule})
		}
	}
	return nil
}

// elements are the prefixes of the version as an interval set takes them.
func (v version) elements(prefixes []netip.Prefix) []nftables.SetElement {
	var out []nftables.SetElement
	for _, p := range prefixes {
		if p.Addr().BitLen() != int(v.length)*8 {
			continue
		}
		first, last, err := nftables.NetFirstAndLastIP(p.String())
		if err != nil {
			continue // not of a netip.Prefix
		}
		end, _ := netip.AddrFromSlice(last)
		if first4 := first.To4(); v.length == 4 {
			first = first4
			end = end.Unmap()
		}
		out = append(out, nftables.SetElement{Key: first}, nftables.SetElement{Key: end.Next().AsSlice(), IntervalEnd: true})
	}
	return out
}

const reg = unix.NFT_REG_1

func (v version) match() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{v.proto}},
	}
}

func (v version) in(offset uint32, set string, not bool) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: v.length},
		&expr.Lookup{SourceRegister: reg, SetName: set, Invert: not},
	}
}

// named matches the name of a packet's link, or ends the rule.
func named(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return []expr.Any{&expr.Meta{Key: key, Register: reg}, &expr.Cmp{Op: op, Register: reg, Data: data}}
}

// plain drops what comes from, or goes to, a pod of the cluster by a link that is none of
// tunnels, pods' links and the loopback.
func (g guarded) plain(name, group expr.MetaKey) [][]expr.Any {
	var rules [][]expr.Any
	for _, link := range append(slices.Clone(g.links), "lo") {
		rules = append(rules, append(named(name, expr.CmpOpEq, link), &expr.Verdict{Kind: expr.VerdictAccept}))
	}
	rules = append(rules, []expr.Any{
		&expr.Meta{Key: group, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.NativeEndian.PutUint32(g.pods)},
		&expr.Verdict{Kind: expr.VerdictAccept},
	})
	for _, v := range versions {
		at := v.saddr
		if name == expr.MetaKeyOIFNAME {
			at = v.daddr
		}
		rules = append(rules, slices.Concat(v.match(), v.in(at, v.ranges, false), []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}))
	}
	return rules
}

// own gives what is not from a pod of this node the link's own address: a tunnel of another
// node lets nothing else in.
func (g guarded) own() [][]expr.Any {
	var rules [][]expr.Any
	for _, link := range g.links {
		for _, v := range versions {
			rules = append(rules, slices.Concat(named(expr.MetaKeyOIFNAME, expr.CmpOpEq, link), v.match(), v.in(v.saddr, v.self, true),
				[]expr.Any{&expr.Masq{FullyRandom: true}}))
		}
	}
	return rules
}
