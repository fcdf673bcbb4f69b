package policy

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/vk-metal/vk-metal/internal/nft"
)

// table owns the kernel's table. Safe for concurrent use.
type table struct {
	podGroup uint32
	table    *nftables.Table

	mu      sync.Mutex
	conn    *nft.Conn
	handles map[string][]uint64 // of the rules of each chain
}

func newTable(nsFD int, podGroup uint32) *table {
	return &table{
		conn: nft.New(nsFD, tableName, nft.BigBuffer), podGroup: podGroup, handles: map[string][]uint64{},
		table: &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName},
	}
}

func (t *table) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conn.Drop()
}

// own says whether an event with this netlink port is of our own making.
func (t *table) own(portID uint32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.conn.Own(portID)
}

// batch is one transaction being built. The first error sticks.
type batch struct {
	t   *table
	c   *nftables.Conn
	err error
}

func (t *table) batch() (*batch, error) {
	c, err := t.conn.Open()
	return &batch{t: t, c: c}, err
}

func (b *batch) commit() error {
	if b.err != nil {
		b.t.conn.Drop() // what is pending must not go with the next transaction
		return fmt.Errorf("change nftables table %s: %w", tableName, b.err)
	}
	return b.t.conn.Commit()
}

func (b *batch) elements(s *nftables.Set, list []nftables.SetElement, apply func(*nftables.Set, []nftables.SetElement) error) {
	if b.err == nil {
		b.err = nft.Portions(s, slices.Values(list), apply)
	}
}

func (b *batch) set(s Set, elements map[Element]bool) {
	var list []nftables.SetElement
	for e := range elements {
		list = append(list, kernelElements(s, e)...)
	}
	b.add(kernelSet(b.t.table, s), list)
}

func (b *batch) add(s *nftables.Set, list []nftables.SetElement) {
	if b.err == nil {
		b.err = nft.AddSet(b.c, s, list...)
	}
}

func (b *batch) chain(name string) {
	b.c.AddChain(&nftables.Chain{Table: b.t.table, Name: name})
}

func (b *batch) fill(name string, rules []Rule) {
	c := &nftables.Chain{Table: b.t.table, Name: name}
	for _, r := range rules {
		b.c.AddRule(&nftables.Rule{Table: b.t.table, Chain: c, Exprs: exprsOf(r)})
	}
	if denied := deniedIn(rules); denied != "" {
		b.c.AddRule(&nftables.Rule{Table: b.t.table, Chain: c, Exprs: verdict(expr.VerdictGoto, denied)})
	}
}

// deniedIn is where a chain of a pod ends: these consist of jumps to policies.
func deniedIn(rules []Rule) string {
	if len(rules) == 0 || rules[0].Jump == "" {
		return ""
	}
	return deniedChain + rules[0].Direction.String()
}

// change applies what changed in one transaction; after an error the kernel is as before.
func (t *table) change(d *changes) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, err := t.batch()
	if err != nil {
		return err
	}
	b.takeAway(d)
	b.putInPlace(d)
	if err := b.commit(); err != nil {
		return err
	}
	return t.remember(slices.Collect(maps.Keys(d.chains)))
}

// takeAway begins with elements, which hold on to chains, and ends with sets, which rules hold.
func (b *batch) takeAway(d *changes) {
	gone := map[Set][]nftables.SetElement{}
	for k, was := range d.elements {
		if was {
			gone[k.set] = append(gone[k.set], kernelElements(k.set, k.element)...)
		}
	}
	for s, list := range gone {
		b.elements(kernelSet(b.t.table, s), list, b.c.SetDeleteElements)
	}
	for target, was := range d.isolated {
		if was != "" {
			b.elements(kernelMap(b.t.table, target.direction, target.addr.Is6()), isolatedElement(target.addr, was), b.c.SetDeleteElements)
		}
	}
	var removed []*nftables.Chain
	for name, was := range d.chains {
		c := &nftables.Chain{Table: b.t.table, Name: name}
		if was == nil {
			continue
		}
		b.c.FlushChain(c)
		if _, stays := d.content.chains[name]; !stays {
			removed = append(removed, c)
		}
	}
	for _, c := range removed {
		b.c.DelChain(c)
	}
	for s, was := range d.sets {
		if was {
			b.c.DelSet(kernelSet(b.t.table, s))
		}
	}
}

func (b *batch) putInPlace(d *changes) {
	for s, was := range d.sets {
		if !was {
			b.set(s, d.content.sets[s])
		}
	}
	for name, was := range d.chains {
		if was == nil {
			b.chain(name)
		}
	}
	for name := range d.chains {
		b.fill(name, d.content.chains[name])
	}
	added := map[Set][]nftables.SetElement{}
	for k, was := range d.elements {
		if !was {
			added[k.set] = append(added[k.set], kernelElements(k.set, k.element)...)
		}
	}
	for s, list := range added {
		b.elements(kernelSet(b.t.table, s), list, b.c.SetAddElements)
	}
	for target := range d.isolated {
		if chain := d.content.isolated[target]; chain != "" {
			b.elements(kernelMap(b.t.table, target.direction, target.addr.Is6()), isolatedElement(target.addr, chain), b.c.SetAddElements)
		}
	}
}

// replace puts the whole in place in one transaction: no packet sees half of it.
func (t *table) replace(content *Content) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, err := t.batch()
	if err != nil {
		return err
	}
	b.c.AddTable(t.table)
	b.c.DelTable(t.table)
	b.c.AddTable(t.table)
	for s, elements := range content.sets {
		b.set(s, elements)
	}
	for _, m := range fixedMaps(t.table) {
		b.add(m, nil)
	}
	for name := range content.chains {
		b.chain(name)
	}
	for _, spec := range fixedChains(t.podGroup) {
		c := b.c.AddChain(spec.chain(t.table))
		for _, e := range spec.rules {
			b.c.AddRule(&nftables.Rule{Table: t.table, Chain: c, Exprs: e})
		}
	}
	for name, rules := range content.chains {
		b.fill(name, rules)
	}
	for target, chain := range content.isolated {
		b.elements(kernelMap(t.table, target.direction, target.addr.Is6()), isolatedElement(target.addr, chain), b.c.SetAddElements)
	}
	if err := b.commit(); err != nil {
		return err
	}
	t.handles = map[string][]uint64{}
	names := slices.Collect(maps.Keys(content.chains))
	for _, spec := range fixedChains(t.podGroup) {
		names = append(names, spec.name)
	}
	return t.remember(names)
}

// remember notes the handles that the kernel gave the rules: a rule that somebody deletes,
// adds or replaces shows as another list.
func (t *table) remember(chains []string) error {
	for _, name := range chains {
		got, err := t.conn.Handles(t.table, name)
		if err != nil {
			return err
		}
		if t.handles[name] = got; got == nil {
			delete(t.handles, name)
		}
	}
	return nil
}

// same says whether the kernel has the fixed chains and all of content; any failure to read
// counts as a difference.
func (t *table) same(content *Content) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, want := range t.handles {
		if got, err := t.conn.Handles(t.table, name); err != nil || !slices.Equal(got, want) {
			return false
		}
	}
	for s, elements := range content.sets {
		var want []nftables.SetElement
		for e := range elements {
			want = append(want, kernelElements(s, e)...)
		}
		if !t.holds(kernelSet(t.table, s), want) {
			return false
		}
	}
	wanted := map[string][]nftables.SetElement{}
	for target, chain := range content.isolated {
		m := isolatedMap(target.direction, target.addr.Is6()).Name
		wanted[m] = append(wanted[m], isolatedElement(target.addr, chain)...)
	}
	for _, m := range fixedMaps(t.table) {
		if !t.holds(m, wanted[m.Name]) {
			return false
		}
	}
	return true
}

// holds says whether the kernel's set has exactly these elements.
func (t *table) holds(s *nftables.Set, want []nftables.SetElement) bool {
	have, err := t.conn.Elements(s)
	if err != nil {
		return false
	}
	type key struct {
		key string
		end bool
	}
	chains := map[key]string{}
	for _, e := range want {
		chain := ""
		if e.VerdictData != nil {
			chain = e.VerdictData.Chain
		}
		chains[key{string(e.Key), e.IntervalEnd}] = chain
	}
	seen := 0
	for _, e := range have {
		chain, ok := chains[key{string(e.Key), e.IntervalEnd}]
		if !ok && s.Interval && e.IntervalEnd && zero(e.Key) {
			continue // the kernel's mark of where the first range begins
		}
		if !ok || chain != "" && !bytes.Contains(e.Val, append([]byte(chain), 0)) {
			return false
		}
		seen++
	}
	return seen == len(chains)
}

func zero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// remove takes our table away.
func (t *table) remove() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, err := t.batch()
	if err != nil {
		return err
	}
	b.c.AddTable(t.table) // so that a missing one is no error
	b.c.DelTable(t.table)
	return b.commit()
}

// guarded are the addresses of pods whose rules an earlier run left in the kernel.
func (t *table) guarded() map[netip.Addr]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[netip.Addr]bool{}
	for _, ipv6 := range []bool{false, true} {
		got, err := t.conn.Elements(kernelSet(t.table, selfSet(ipv6)))
		if err != nil {
			return out
		}
		for _, e := range got {
			if a, ok := netip.AddrFromSlice(e.Key[:len(e.Key)/2]); ok {
				out[a] = true
			}
		}
	}
	return out
}

// denied counts the packets that were dropped.
func (t *table) denied(d Direction) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	c, err := t.conn.Open()
	if err != nil {
		return 0
	}
	rules, err := c.GetRules(t.table, &nftables.Chain{Table: t.table, Name: deniedChain + d.String()})
	if err != nil {
		t.conn.Drop()
		return 0
	}
	var sum uint64
	for _, r := range rules {
		for _, e := range r.Exprs {
			if counter, ok := e.(*expr.Counter); ok {
				sum += counter.Packets
			}
		}
	}
	return sum
}
