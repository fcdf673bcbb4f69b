package netns

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"

	"github.com/vk-metal/vk-metal/internal/nft"
)

// rules owns the nftables table. It holds what is wanted in memory, changes elements one
// transaction at a time, and puts the whole table back in one transaction when the
// kernel's differs. Safe for concurrent use.
type rules struct {
	mu      sync.Mutex
	conn    *nft.Conn
	table   *nftables.Table
	sets    map[string]*nftables.Set
	ready   bool // the table was put in place once
	world   bool
	local   []netip.Prefix
	noMasq  []netip.Prefix
	content elements
	handles map[string][]uint64 // by chain
}

func newRules(nsFD int) *rules {
	r := &rules{conn: nft.New(nsFD, tableName, nft.SmallBuffer), table: &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}, content: elements{}, sets: map[string]*nftables.Set{}}
	for _, s := range sets(r.table) {
		r.sets[s.Name] = s
	}
	return r
}

func (r *rules) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conn.Drop()
}

// own says whether an event with this netlink port is of our own making.
func (r *rules) own(portID uint32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conn.Own(portID)
}

// change replaces one pod's elements by others in one transaction; what is there
// already is not touched. If the kernel's table is not what we think, the whole is put back.
func (r *rules) change(from, to elements) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	del, add := from.minus(to), to.minus(r.content)
	for set, kv := range del {
		for k := range kv {
			delete(r.content[set], k)
		}
	}
	r.content.merge(add)
	if !r.ready || len(del) == 0 && len(add) == 0 {
		return nil
	}
	if err := r.patch(del, add); err == nil {
		return nil
	}
	return r.replace()
}

func (r *rules) patch(del, add elements) error {
	c, err := r.conn.Open()
	if err != nil {
		return err
	}
	for set, kv := range del {
		if err := c.SetDeleteElements(r.sets[set], setElements(kv)); err != nil {
			return err
		}
	}
	for set, kv := range add {
		if err := c.SetAddElements(r.sets[set], setElements(kv)); err != nil {
			return err
		}
	}
	return r.conn.Commit()
}

// configure sets what does not belong to one pod, and puts the table in place.
func (r *rules) configure(world bool, local, noMasq []netip.Prefix) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ready && r.world == world && slices.Equal(r.local, local) && slices.Equal(r.noMasq, noMasq) {
		return nil
	}
	onlyRanges := r.ready && r.world == world
	r.world, r.local, r.noMasq = world, local, noMasq
	if onlyRanges && r.patchRanges() == nil {
		return nil
	}
	return r.replace()
}

// patchRanges gives the range sets their new content in one transaction: with every
// node that comes or goes.
func (r *rules) patchRanges() error {
	c, err := r.conn.Open()
	if err != nil {
		return err
	}
	for _, name := range []string{setLocal4, setLocal6, setNoMasq4, setNoMasq6} {
		c.FlushSet(r.sets[name])
		if err := nft.Portions(r.sets[name], slices.Values(r.wanted(name)), c.SetAddElements); err != nil {
			return err
		}
	}
	return r.conn.Commit()
}

// replace puts the whole table in place in one transaction: no packet sees half of it,
// and established translations live on in the connection tracking.
func (r *rules) replace() error {
	c, err := r.conn.Open()
	if err != nil {
		return err
	}
	c.AddTable(r.table)
	c.DelTable(r.table)
	c.AddTable(r.table)
	for _, s := range sets(r.table) {
		if err := nft.AddSet(c, s, r.wanted(s.Name)...); err != nil {
			return err
		}
	}
	specs := chains(r.world)
	for _, spec := range specs {
		c.AddChain(spec.chain(r.table))
	}
	for _, spec := range specs {
		for _, e := range spec.rules {
			c.AddRule(&nftables.Rule{Table: r.table, Chain: spec.chain(r.table), Exprs: e})
		}
	}
	if err := r.conn.Commit(); err != nil {
		return err
	}
	r.ready = true
	return r.remember(specs)
}

// remember notes the handles that the kernel gave our rules: a rule that somebody
// deletes, adds or replaces shows as another list of handles.
func (r *rules) remember(specs []chainSpec) error {
	r.handles = map[string][]uint64{}
	for _, spec := range specs {
		got, err := r.conn.Handles(r.table, spec.name)
		if err != nil {
			return err
		}
		r.handles[spec.name] = got
	}
	return nil
}

func (s chainSpec) chain(t *nftables.Table) *nftables.Chain {
	return &nftables.Chain{Table: t, Name: s.name, Type: s.typ, Hooknum: s.hook, Priority: s.prio}
}

// wanted is a set's content.
func (r *rules) wanted(set string) []nftables.SetElement {
	switch set {
	case setLocal4, setLocal6:
		return rangeElements(family(r.local, set == setLocal4))
	case setNoMasq4, setNoMasq6:
		return rangeElements(family(r.noMasq, set == setNoMasq4))
	}
	return setElements(r.content[set])
}

func setElements(kv map[string]string) []nftables.SetElement {
	out := make([]nftables.SetElement, 0, len(kv))
	for k, v := range kv {
		out = append(out, nftables.SetElement{Key: []byte(k), Val: []byte(v)})
	}
	return out
}

// check compares the kernel's table with what is wanted and puts it back if they
// differ; it says whether it had to.
func (r *rules) check() (healed bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ready || r.same() {
		return false, nil
	}
	return true, r.replace()
}

// same reads the whole table; any failure to read counts as a difference.
func (r *rules) same() bool {
	for _, spec := range chains(r.world) {
		got, err := r.conn.Handles(r.table, spec.name)
		if err != nil || !slices.Equal(got, r.handles[spec.name]) {
			return false
		}
	}
	for name, s := range r.sets {
		got, err := r.conn.Elements(s)
		if err != nil || !sameElements(got, r.wanted(name)) {
			return false
		}
	}
	return true
}

func sameElements(got, want []nftables.SetElement) bool {
	key := func(e nftables.SetElement) string {
		return fmt.Sprintf("%x %t %x", e.Key, e.IntervalEnd, e.Val)
	}
	seen := map[string]bool{}
	for _, e := range got {
		seen[key(e)] = true
	}
	for _, e := range want {
		if !seen[key(e)] {
			return false
		}
		delete(seen, key(e))
	}
	return len(seen) == 0
}

// read is what the kernel has in a set; nothing when table or set are missing.
func (r *rules) read(set string) map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	got, err := r.conn.Elements(r.sets[set])
	if err != nil {
		return nil
	}
	out := map[string]string{}
	for _, e := range got {
		out[string(e.Key)] = string(e.Val)
	}
	return out
}
