package services

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/nft"
)

// table owns the kernel's tables. It holds nothing of the wanted content but what it needs
// to change it: the chains and groups that are there. Safe for concurrent use.
type table struct {
	ns       *linuxns.NS
	families []*family
	sets     map[setName]*nftables.Set

	mu   sync.Mutex
	conn *nft.Conn
	// lingers: the kernel has no time-outs per connection (CONFIG_NF_CONNTRACK_TIMEOUT).
	lingers bool
	chains  map[setName]bool // numbered chains that are there
	groups  map[string]*group
	rules   map[setName][]uint64 // handles of the rules of each chain
}

// newTable makes a table of the namespace; podGroup is the link group of pods' interfaces.
func newTable(ns *linuxns.NS, podGroup uint32) *table {
	t := &table{ns: ns, conn: nft.New(ns.FD(), tableName, nft.BigBuffer), sets: map[setName]*nftables.Set{}}
	for _, ipv6 := range []bool{false, true} {
		f := newFamily(ipv6, podGroup)
		t.families = append(t.families, f)
		for _, s := range f.sets() {
			t.sets[setName{ipv6, s.Name}] = s
		}
	}
	return t
}

func (t *table) family(ipv6 bool) *family {
	if ipv6 {
		return t.families[1]
	}
	return t.families[0]
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

// change applies what changed in one transaction. After an error the kernel is as before.
func (t *table) change(d *delta) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, err := t.batch()
	if err != nil {
		return err
	}
	b.elements(d.del.listed(), b.c.SetDeleteElements)
	for name, g := range d.groups {
		b.group(name, g)
	}
	add := d.add.listed()
	b.chainsOf(add)
	b.elements(add, b.c.SetAddElements)
	return b.commit()
}

// replace puts the whole in place in one transaction: no packet sees half of it, and
// established translations live on in the connection tracking.
func (t *table) replace(content listed, groups map[string]*group) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.put(content, groups)
	if !t.lingers && errors.Is(err, unix.ENOENT) {
		t.lingers = true // the first kind of object that a kernel may lack
		err = t.put(content, groups)
	}
	return err
}

func (t *table) put(content listed, groups map[string]*group) error {
	b, err := t.batch()
	if err != nil {
		return err
	}
	closing := t.closing()
	b.chains, b.groups, b.clients = map[setName]bool{}, map[string]*group{}, t.clients(groups)
	for _, f := range t.families {
		b.c.AddTable(f.table)
		b.c.DelTable(f.table)
		b.c.AddTable(f.table)
		if f.setClosing(closing); f.closing != nil {
			b.c.AddObj(f.closing)
		}
		for _, s := range f.sets() {
			if !s.Interval {
				s.Size = capacity(len(content.of(setName{f.ipv6, s.Name})))
			}
			b.set(s)
		}
		for _, spec := range f.chains() {
			b.chain(f, spec)
		}
	}
	for name, g := range groups {
		b.group(name, g)
	}
	b.chainsOf(content)
	b.elements(content, b.c.SetAddElements)
	commit := t.conn.Commit
	if content.count() >= manyElements {
		commit = t.conn.CommitMany
	}
	if err := b.commitBy(commit); err != nil {
		return err
	}
	return t.remember()
}

// manyElements are worth the few system calls of nft.Conn.CommitMany.
const manyElements = 1000

// minCapacity of a set, in elements.
const minCapacity = 1 << 12

// capacity is how many elements a set with n of them has room for. The kernel then takes a
// hash table that it need not grow, which makes loading several times as fast; when a set is
// full the change fails and the whole is put in place with more room.
func capacity(n int) uint32 {
	c := minCapacity
	for c < 2*n {
		c *= 2
	}
	return uint32(c)
}

// remove takes our tables away.
func (t *table) remove() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, err := t.batch()
	if err != nil {
		return err
	}
	for _, f := range t.families {
		b.c.AddTable(f.table) // so that a missing one is no error
		b.c.DelTable(f.table)
	}
	return b.commit()
}

// batch is one transaction being built, and what will be there after it. The first error
// sticks.
type batch struct {
	t      *table
	c      *nftables.Conn
	err    error
	chains map[setName]bool
	groups map[string]*group
	// clients are those that new endpoints begin with.
	clients map[setName][]nftables.SetElement
}

func (t *table) batch() (*batch, error) {
	c, err := t.conn.Open()
	return &batch{t: t, c: c, chains: maps.Clone(t.chains), groups: maps.Clone(t.groups)}, err
}

func (b *batch) commit() error { return b.commitBy(b.t.conn.Commit) }

func (b *batch) commitBy(commit func() error) error {
	if b.err != nil {
		b.t.conn.Drop() // what is pending must not go with the next transaction
		return fmt.Errorf("change nftables table %s: %w", tableName, b.err)
	}
	if err := commit(); err != nil {
		return err
	}
	b.t.chains, b.t.groups = b.chains, b.groups
	return nil
}

func (b *batch) set(s *nftables.Set, list ...nftables.SetElement) {
	if b.err == nil {
		b.err = nft.AddSet(b.c, s, list...)
	}
}

func (b *batch) chain(f *family, spec chainSpec) {
	c := b.c.AddChain(spec.chain(f.table))
	for _, e := range spec.rules {
		b.c.AddRule(&nftables.Rule{Table: f.table, Chain: c, Exprs: e})
	}
}

// chainsOf makes the numbered chains that verdicts lead to; they stay for ever.
func (b *batch) chainsOf(l listed) {
	for set := range l {
		if s := b.t.sets[set]; !s.IsMap || s.DataType.Name != nftables.TypeVerdict.Name {
			continue
		}
		f := b.t.family(set.ipv6)
		for _, e := range l.of(set) {
			at := setName{set.ipv6, e.value}
			if b.chains[at] {
				continue
			}
			if spec, ok := f.numberedChain(e.value); ok {
				b.chain(f, spec)
				b.chains[at] = true
			}
		}
	}
}

func (b *batch) elements(l listed, apply func(*nftables.Set, []nftables.SetElement) error) {
	for set := range l {
		if s := b.t.sets[set]; b.err == nil {
			b.err = nft.Portions(s, setElements(s, l.of(set)), apply)
		}
	}
}

// setElements is the kernel's form of a set's content.
func setElements(s *nftables.Set, list []element) iter.Seq[nftables.SetElement] {
	return func(yield func(nftables.SetElement) bool) {
		for _, kv := range list {
			e := nftables.SetElement{Key: []byte(kv.key)}
			switch half := len(kv.key) / 2; {
			case s.Interval:
				e.Key, e.KeyEnd = []byte(kv.key[:half]), []byte(kv.key[half:])
			case s.IsMap && s.DataType.Name == nftables.TypeVerdict.Name:
				e.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: kv.value}
			case s.IsMap:
				e.Val = []byte(kv.value)
			}
			if !yield(e) {
				return
			}
		}
	}
}

// remember notes the handles that the kernel gave our fixed rules: a rule that somebody
// deletes, adds or replaces shows as another list.
func (t *table) remember() (err error) {
	t.rules, err = t.handles()
	return err
}

func (t *table) handles() (map[setName][]uint64, error) {
	out := map[setName][]uint64{}
	for _, f := range t.families {
		for _, spec := range f.chains() {
			got, err := t.conn.Handles(f.table, spec.name)
			if err != nil {
				return nil, err
			}
			out[setName{f.ipv6, spec.name}] = got
		}
	}
	return out, nil
}

// same says whether the kernel has the fixed rules and all of content; any failure to read
// counts as a difference.
func (t *table) same(content elements) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	got, err := t.handles()
	if err != nil || !maps.EqualFunc(got, t.rules, slices.Equal) {
		return false
	}
	for name, s := range t.sets {
		if have, err := t.conn.Elements(s); err != nil || !sameElements(s, have, content[name]) {
			return false
		}
	}
	return true
}

func sameElements(s *nftables.Set, have []nftables.SetElement, want map[string]string) bool {
	if len(have) != len(want) {
		return false
	}
	for _, e := range have {
		key := string(e.Key) + string(e.KeyEnd)
		v, ok := want[key]
		switch {
		case !ok:
			return false
		case !s.IsMap:
		case s.DataType.Name == nftables.TypeVerdict.Name:
			if !bytes.Contains(e.Val, append([]byte(v), 0)) {
				return false
			}
		case v != string(e.Val):
			return false
		}
	}
	return true
}
