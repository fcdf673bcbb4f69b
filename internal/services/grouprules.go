package services

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// endpointName is the name of an endpoint's chain and of the set of its clients.
func endpointName(group string, to netip.AddrPort) string {
	sum := sha256.Sum256([]byte(to.String()))
	return group + "-to-" + hex.EncodeToString(sum[:8])
}

func (g *group) endpoints() []netip.AddrPort {
	all := slices.Concat(g.cluster, g.here)
	slices.SortFunc(all, netip.AddrPort.Compare)
	return slices.Compact(all)
}

// lists are the names of the chains that choose an endpoint.
func (g *group) lists(name string) []string {
	return []string{name + "-" + chainCluster, name + "-here", name + "-" + chainExternal, name + "-" + chainLocal}
}

// group puts a group in place of what there is of this name; nil takes it away. Clients of
// endpoints that stay are kept unless the time-out changed.
func (b *batch) group(name string, g *group) {
	old := b.groups[name]
	if old != nil {
		b.clearGroup(name, old, g)
	}
	if g == nil {
		delete(b.groups, name)
		return
	}
	b.groups[name] = g
	f := b.t.family(g.ipv6)
	for _, list := range g.lists(name) {
		b.c.AddChain(&nftables.Chain{Table: f.table, Name: list})
	}
	for _, to := range g.endpoints() {
		if old == nil || !old.keeps(g, to) {
			b.endpoint(f, name, g, to)
		}
	}
	b.groupRules(f, name, g)
}

// keeps says whether the endpoint's chain and set stay as they are when next takes over.
func (g *group) keeps(next *group, to netip.AddrPort) bool {
	return next != nil && next.timeout == g.timeout && next.ipv6 == g.ipv6 &&
		slices.Contains(g.endpoints(), to) && slices.Contains(next.endpoints(), to)
}

// clearGroup empties the lists and takes away the endpoints that do not stay.
func (b *batch) clearGroup(name string, old, next *group) {
	f := b.t.family(old.ipv6)
	for _, list := range old.lists(name) {
		b.c.FlushChain(&nftables.Chain{Table: f.table, Name: list})
	}
	var gone []string
	for _, to := range old.endpoints() {
		if !old.keeps(next, to) {
			gone = append(gone, endpointName(name, to))
		}
	}
	for _, chain := range gone {
		b.c.FlushChain(&nftables.Chain{Table: f.table, Name: chain})
		b.c.DelChain(&nftables.Chain{Table: f.table, Name: chain})
		b.c.DelSet(&nftables.Set{Table: f.table, Name: chain})
	}
	if next == nil {
		for _, list := range slices.Backward(old.lists(name)) {
			b.c.DelChain(&nftables.Chain{Table: f.table, Name: list})
		}
	}
}

// endpoint makes the chain that notes the client and translates.
func (b *batch) endpoint(f *family, name string, g *group, to netip.AddrPort) {
	set := &nftables.Set{Table: f.table, Name: endpointName(name, to), KeyType: f.addr, Dynamic: true, HasTimeout: true}
	b.set(set, lives(b.clients[setName{g.ipv6, set.Name}], g.timeout)...)
	value := []byte(endpointValue(to))
	b.chain(f, chainSpec{name: set.Name, rules: []exprs{
		{f.load(f.saddr, reg1), &expr.Dynset{SrcRegKey: reg1, SetName: set.Name, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: g.timeout}},
		rule(exprs{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{byte(g.proto)}},
			&expr.Immediate{Register: reg1, Data: value[:f.length]},
			&expr.Immediate{Register: r32(f.regs), Data: value[f.length : f.length+2]},
		}, f.translate()),
	}})
}

// groupRules fills the lists.
func (b *batch) groupRules(f *family, name string, g *group) {
	lists := g.lists(name)
	cluster := verdict(expr.VerdictGoto, lists[0])
	rules := [][]exprs{
		f.choose(name, g.cluster),
		f.choose(name, g.here),
		{rule(mark(), cluster)},
		{rule(f.fromPods(expr.CmpOpEq), cluster), rule(local(true), mark(), cluster), verdict(expr.VerdictGoto, lists[1])},
	}
	for i, list := range lists {
		for _, e := range rules[i] {
			b.c.AddRule(&nftables.Rule{Table: f.table, Chain: &nftables.Chain{Table: f.table, Name: list}, Exprs: e})
		}
	}
}

// choose sends a known client to its endpoint, and others to any.
func (f *family) choose(name string, list []netip.AddrPort) []exprs {
	var out []exprs
	for _, to := range list {
		out = append(out, rule(exprs{f.load(f.saddr, reg1), in(endpointName(name, to))}, verdict(expr.VerdictGoto, endpointName(name, to))))
	}
	for i, to := range list {
		out = append(out, rule(exprs{
			&expr.Numgen{Register: reg1, Modulus: uint32(len(list) - i), Type: unix.NFT_NG_RANDOM},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: ne32(0)},
		}, verdict(expr.VerdictGoto, endpointName(name, to))))
	}
	return append(out, verdict(expr.VerdictDrop))
}

// clients are those that endpoints have in the kernel, by an endpoint's set: from before a
// restart of the agent, or before the whole was put in place for another reason.
func (t *table) clients(groups map[string]*group) map[setName][]nftables.SetElement {
	out := map[setName][]nftables.SetElement{}
	wanted := map[setName]bool{}
	for name, g := range groups {
		for _, to := range g.endpoints() {
			wanted[setName{g.ipv6, endpointName(name, to)}] = true
		}
	}
	if len(wanted) == 0 {
		return out
	}
	c, err := t.conn.Open()
	if err != nil {
		return out
	}
	for _, f := range t.families {
		sets, err := c.GetSets(f.table)
		if err != nil {
			continue // no table yet
		}
		for _, s := range sets {
			at := setName{f.ipv6, s.Name}
			if !wanted[at] {
				continue
			}
			if got, err := c.GetSetElements(s); err == nil {
				out[at] = got
			}
		}
	}
	return out
}

// lives are the clients with what is left of their time; the next connection begins it anew.
func lives(clients []nftables.SetElement, timeout time.Duration) (out []nftables.SetElement) {
	for _, c := range clients {
		if left := min(c.Expires, timeout); left > 0 {
			out = append(out, nftables.SetElement{Key: c.Key, Timeout: left})
		}
	}
	return out
}
