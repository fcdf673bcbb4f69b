package policy

import "slices"

// setElementKey is one element of one set.
type setElementKey struct {
	set     Set
	element Element
}

// changes notes how the content was before what was changed since, so that what comes and
// goes again in one step is no change.
type changes struct {
	content  *Content
	sets     map[Set]bool // was there
	elements map[setElementKey]bool
	chains   map[string][]Rule // nil: was not there
	isolated map[target]string // "": was not there
	// removed says that something may be forbidden now that was allowed.
	removed bool
}

func newChanges(c *Content) *changes {
	return &changes{content: c, sets: map[Set]bool{}, elements: map[setElementKey]bool{}, chains: map[string][]Rule{}, isolated: map[target]string{}}
}

func (c *changes) empty() bool {
	return len(c.sets) == 0 && len(c.elements) == 0 && len(c.chains) == 0 && len(c.isolated) == 0
}

// note keeps the first old value of each.
func note[K comparable, V any](m map[K]V, key K, old V) {
	if _, known := m[key]; !known {
		m[key] = old
	}
}

func (e *engine) addSet(s Set) {
	if _, there := e.content.sets[s]; there {
		return
	}
	note(e.changes.sets, s, false)
	e.content.sets[s] = map[Element]bool{}
}

// dropSet is for sets that no rule names any more.
func (e *engine) dropSet(s Set) {
	note(e.changes.sets, s, true)
	delete(e.content.sets, s)
}

func (e *engine) setElement(s Set, x Element, there bool) {
	if e.content.sets[s][x] == there {
		return
	}
	note(e.changes.elements, setElementKey{s, x}, !there)
	if there {
		e.content.sets[s][x] = true
		return
	}
	e.changes.removed = true
	delete(e.content.sets[s], x)
}

// setChain puts the rules in place of the chain's; nil takes the chain away.
func (e *engine) setChain(name string, rules []Rule) {
	old, there := e.content.chains[name]
	if rules == nil && !there || rules != nil && there && slices.Equal(old, rules) {
		return
	}
	if there && old == nil {
		old = []Rule{}
	}
	note(e.changes.chains, name, old)
	e.changes.removed = e.changes.removed || there
	if rules == nil {
		delete(e.content.chains, name)
		return
	}
	e.content.chains[name] = rules
}

// isolate leads an address to its chain; "" lets everything pass.
func (e *engine) isolate(t target, chain string) {
	old := e.content.isolated[t]
	if old == chain {
		return
	}
	note(e.changes.isolated, t, old)
	if chain == "" {
		delete(e.content.isolated, t)
		return
	}
	e.changes.removed = true
	e.content.isolated[t] = chain
}

// net drops what is as it was before.
func (c *changes) net() {
	for s, was := range c.sets {
		if _, is := c.content.sets[s]; is == was {
			delete(c.sets, s)
		}
	}
	for k, was := range c.elements {
		_, wasSet := c.sets[k.set]
		if c.content.sets[k.set][k.element] == was || wasSet {
			delete(c.elements, k) // of a whole set that comes or goes, or no change
		}
	}
	for name, was := range c.chains {
		is, there := c.content.chains[name]
		if there == (was != nil) && slices.Equal(is, was) {
			delete(c.chains, name)
		}
	}
	for t, was := range c.isolated {
		if c.content.isolated[t] == was {
			delete(c.isolated, t)
		}
	}
}
