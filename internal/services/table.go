package services

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// elementsChunk is how many elements go into one netlink attribute, which holds 64 KiB.
const elementsChunk = 400

// socketBuffer in bytes: a whole table is one write.
const socketBuffer = 64 << 20

// table owns the kernel's tables. It holds nothing of the wanted content but what it needs
// to change it: the chains and groups that are there. Safe for concurrent use.
type table struct {
	ns       *linuxns.NS
	families []*family
	sets     map[setName]*nftables.Set

	mu     sync.Mutex
	conn   *nftables.Conn // nil after an error
	portID uint32
	// lingers: the kernel has no time-outs per connection (CONFIG_NF_CONNTRACK_TIMEOUT).
	lingers bool
	chains  map[setName]bool // numbered chains that are there
	groups  map[string]*group
	rules   map[setName][]uint64 // handles of the rules of each chain
}

// newTable makes a table of the namespace; podGroup is the link group of pods' interfaces.
func newTable(ns *linuxns.NS, podGroup uint32) *table {
	t := &table{ns: ns, sets: map[setName]*nftables.Set{}}
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
	t.drop()
}

func (t *table) drop() {
	if t.conn != nil {
		_ = t.conn.CloseLasting()
		t.conn = nil
	}
}

// open gives a connection with nothing pending.
func (t *table) open() (*nftables.Conn, error) {
	if t.conn != nil {
		return t.conn, nil
	}
	c, err := nftables.New(nftables.WithNetNSFd(t.ns.FD()), nftables.AsLasting(), nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
		t.portID = c.PID()
		// Best effort: the default is enough for a few hundred elements.
		_, _ = c.SetReadBuffer(socketBuffer), c.SetWriteBuffer(socketBuffer)
		return nil
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	t.conn = c
	return c, nil
}

// own says whether an event with this netlink port is of our own making.
func (t *table) own(portID uint32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.conn != nil && portID == t.portID
}

// flush commits; after an error the connection is not trusted any more.
func (t *table) flush() error {
	if err := t.conn.Flush(); err != nil {
		t.drop()
		return fmt.Errorf("commit nftables table %s: %w", tableName, err)
	}
	return nil
}

// change applies what changed in one transaction. After an error the kernel is as before.
func (t *table) change(d *delta) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	c, err := t.open()
	if err != nil {
		return err
	}
	b := &batch{t: t, c: c, chains: maps.Clone(t.chains), groups: maps.Clone(t.groups)}
	if err := b.elements(d.del, c.SetDeleteElements); err != nil {
		return err
	}
	for name, g := range d.groups {
		b.group(name, g)
	}
	b.chainsOf(d.add)
	if err := b.elements(d.add, c.SetAddElements); err != nil {
		return err
	}
	return b.commit()
}

// replace puts the whole in place in one transaction: no packet sees half of it, and
// established translations live on in the connection tracking.
func (t *table) replace(content elements, groups map[string]*group) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.put(content, groups)
	if !t.lingers && errors.Is(err, unix.ENOENT) {
		t.lingers = true // the first kind of object that a kernel may lack
		err = t.put(content, groups)
	}
	return err
}

func (t *table) put(content elements, groups map[string]*group) error {
	c, err := t.open()
	if err != nil {
		return err
	}
	b := &batch{t: t, c: c, chains: map[setName]bool{}, groups: map[string]*group{}, clients: t.clients(groups)}
	closing := t.closing()
	for _, f := range t.families {
		c.AddTable(f.table)
		c.DelTable(f.table)
		c.AddTable(f.table)
		if f.setClosing(closing); f.closing != nil {
			c.AddObj(f.closing)
		}
		for _, s := range f.sets() {
			if !s.Interval {
				s.Size = capacity(len(content[setName{f.ipv6, s.Name}]))
			}
			if err := c.AddSet(s, nil); err != nil {
				return fmt.Errorf("build set %s: %w", s.Name, err)
			}
		}
		for _, spec := range f.chains() {
			b.chain(f, spec)
		}
	}
	for name, g := range groups {
		b.group(name, g)
	}
	b.chainsOf(content)
	if err := b.elements(content, c.SetAddElements); err != nil {
		return err
	}
	if err := b.commit(); err != nil {
		return err
	}
	return t.remember()
}

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
	c, err := t.open()
	if err != nil {
		return err
	}
	for _, f := range t.families {
		c.AddTable(f.table) // so that a missing one is no error
		c.DelTable(f.table)
	}
	return t.flush()
}

// batch is one transaction being built, and what will be there after it.
type batch struct {
	t      *table
	c      *nftables.Conn
	chains map[setName]bool
	groups map[string]*group
	// clients are those that new endpoints begin with.
	clients map[setName][]nftables.SetElement
}

func (b *batch) commit() error {
	if err := b.t.flush(); err != nil {
		return err
	}
	b.t.chains, b.t.groups = b.chains, b.groups
	return nil
}

func (b *batch) chain(f *family, spec chainSpec) {
	c := b.c.AddChain(spec.chain(f.table))
	for _, e := range spec.rules {
		b.c.AddRule(&nftables.Rule{Table: f.table, Chain: c, Exprs: e})
	}
}

// chainsOf makes the numbered chains that verdicts lead to; they stay for ever.
func (b *batch) chainsOf(e elements) {
	for set, kv := range e {
		if s := b.t.sets[set]; !s.IsMap || s.DataType.Name != nftables.TypeVerdict.Name {
			continue
		}
		f := b.t.family(set.ipv6)
		for _, name := range kv {
			at := setName{set.ipv6, name}
			if b.chains[at] {
				continue
			}
			if spec, ok := f.numberedChain(name); ok {
				b.chain(f, spec)
				b.chains[at] = true
			}
		}
	}
}

func (b *batch) elements(e elements, apply func(*nftables.Set, []nftables.SetElement) error) error {
	for set, kv := range e {
		s := b.t.sets[set]
		for part := range slices.Chunk(setElements(s, kv), elementsChunk) {
			if err := apply(s, part); err != nil {
				b.t.drop() // what is pending must not go with the next transaction
				return fmt.Errorf("build elements of %s: %w", set.name, err)
			}
		}
	}
	return nil
}

// setElements is the kernel's form of a set's content.
func setElements(s *nftables.Set, kv map[string]string) []nftables.SetElement {
	out := make([]nftables.SetElement, 0, len(kv))
	for k, v := range kv {
		e := nftables.SetElement{Key: []byte(k)}
		switch {
		case s.Interval:
			e.Key, e.KeyEnd = []byte(k[:len(k)/2]), []byte(k[len(k)/2:])
		case s.IsMap && s.DataType.Name == nftables.TypeVerdict.Name:
			e.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: v}
		case s.IsMap:
			e.Val = []byte(v)
		}
		out = append(out, e)
	}
	return out
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
			got, err := t.conn.GetRules(f.table, spec.chain(f.table))
			if err != nil {
				t.drop()
				return nil, fmt.Errorf("read back chain %s: %w", spec.name, err)
			}
			for _, r := range got {
				out[setName{f.ipv6, spec.name}] = append(out[setName{f.ipv6, spec.name}], r.Handle)
			}
		}
	}
	return out, nil
}

// same says whether the kernel has the fixed rules and all of content; any failure to read
// counts as a difference.
func (t *table) same(content elements) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	c, err := t.open()
	if err != nil {
		return false
	}
	got, err := t.handles()
	if err != nil || !maps.EqualFunc(got, t.rules, slices.Equal) {
		return false
	}
	for name, s := range t.sets {
		have, err := c.GetSetElements(s)
		if err != nil {
			t.drop()
			return false
		}
		if !sameElements(s, have, content[name]) {
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
