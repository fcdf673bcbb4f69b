package policy

import (
	"slices"
)

// engine keeps a Content in step with pods, namespaces and policies. Each change costs what
// depends on it. Not safe for concurrent use.
type engine struct {
	node string

	namespaces  map[string]map[string]string
	pods        map[string]*Pod // by UID
	podsIn      map[string]map[string]*Pod
	policies    map[string]*policyState
	policiesIn  map[string]map[string]*policyState
	collectors  map[string]*collector
	collectorOf map[string]map[string]*collector // by namespace; "" for any
	locals      map[string]*local                // by UID
	owners      owners
	groups      map[string]*group
	constants   map[Set]int // users

	content *Content
	changes *changes
	idle    idle
}

// idle is what may have lost its last user since the last step.
type idle struct {
	policies, groups, collectors map[string]bool
	constants                    map[Set]bool
}

func newIdle() idle {
	return idle{map[string]bool{}, map[string]bool{}, map[string]bool{}, map[Set]bool{}}
}

func (i *idle) empty() bool {
	return len(i.policies) == 0 && len(i.groups) == 0 && len(i.collectors) == 0 && len(i.constants) == 0
}

// policyState is a policy, and its chains while it selects a pod of this node.
type policyState struct {
	*Policy
	selected int // pods of this node
	live     *rendered
}

func newEngine(node string) *engine {
	e := &engine{
		node: node, namespaces: map[string]map[string]string{}, pods: map[string]*Pod{}, podsIn: map[string]map[string]*Pod{},
		policies: map[string]*policyState{}, policiesIn: map[string]map[string]*policyState{},
		collectors: map[string]*collector{}, collectorOf: map[string]map[string]*collector{}, locals: map[string]*local{},
		owners: owners{}, groups: map[string]*group{}, constants: map[Set]int{}, content: newContent(), idle: newIdle(),
	}
	e.changes = newChanges(e.content)
	for _, ipv6 := range []bool{false, true} {
		e.addSet(isolatedSet(ipv6))
		e.addSet(selfSet(ipv6))
	}
	return e
}

// setNamespace takes over a namespace's labels; nil is that it is gone.
func (e *engine) setNamespace(name string, labels map[string]string) {
	old, had := e.namespaces[name]
	if had == (labels != nil) && mapsEqual(old, labels) {
		return
	}
	if e.namespaces[name] = labels; labels == nil {
		delete(e.namespaces, name)
	}
	for _, c := range e.collectorOf[""] {
		for _, p := range e.podsIn[name] {
			e.collect(c, p.UID, p)
		}
	}
}

// setPod takes over what a pod is like; nil is that it is gone.
func (e *engine) setPod(uid string, p *Pod) {
	old := e.pods[uid]
	if p == nil && old == nil || p != nil && old != nil && p.equal(old) {
		return
	}
	if old != nil {
		drop(e.podsIn, old.Namespace, uid)
		delete(e.pods, uid)
	}
	if p != nil {
		put(e.podsIn, p.Namespace, uid, p)
		e.pods[uid] = p
	}
	namespace := ""
	for _, x := range []*Pod{old, p} {
		if x != nil {
			namespace = x.Namespace
		}
	}
	for _, in := range []string{"", namespace} {
		for _, c := range e.collectorOf[in] {
			e.collect(c, uid, p)
		}
	}
	e.place(uid, p)
}

// setPolicy takes over a policy; nil is that it is gone.
func (e *engine) setPolicy(key string, p *Policy) {
	old := e.policies[key]
	if p == nil && old == nil {
		return
	}
	namespace := ""
	if old != nil {
		namespace = old.Namespace
	}
	switch {
	case p == nil:
		delete(e.policies, key)
		drop(e.policiesIn, namespace, key)
	case old == nil:
		namespace = p.Namespace
		s := &policyState{Policy: p}
		e.policies[key] = s
		put(e.policiesIn, namespace, key, s)
	default:
		old.Policy = p
		e.refresh(old)
	}
	for uid, pod := range e.podsIn[namespace] {
		e.place(uid, pod)
	}
	if p == nil && old.live != nil {
		e.release(old)
	}
}

// refresh puts a policy's chains in place if it selects a pod of this node.
func (e *engine) refresh(s *policyState) {
	old := s.live
	if s.selected == 0 {
		if old != nil {
			e.release(s)
		}
		return
	}
	s.live = s.render()
	e.use(s.live)
	for name := range s.live.chains {
		e.setChain(name, s.live.chains[name])
	}
	if old != nil {
		e.unuse(old)
		for name := range old.chains {
			if _, stays := s.live.chains[name]; !stays {
				e.setChain(name, nil)
			}
		}
	}
}

// release takes a policy's chains away.
func (e *engine) release(s *policyState) {
	for name := range s.live.chains {
		e.setChain(name, nil)
	}
	e.unuse(s.live)
	s.live = nil
}

func (e *engine) use(r *rendered) {
	for set, elements := range r.constants {
		if e.constants[set]++; e.constants[set] == 1 {
			e.addSet(set)
			for _, x := range elements {
				e.setElement(set, x, true)
			}
		}
	}
	for key, spec := range r.collectors {
		c := e.collectors[key]
		if c == nil {
			c = e.startCollector(spec)
		}
		c.users++
	}
}

func (e *engine) unuse(r *rendered) {
	for set := range r.constants {
		if e.constants[set]--; e.constants[set] == 0 {
			e.idle.constants[set] = true
		}
	}
	for key := range r.collectors {
		if c := e.collectors[key]; c != nil {
			if c.users--; c.users == 0 {
				e.idle.collectors[key] = true
			}
		}
	}
}

// take ends a step: what nobody uses any more goes, and what changed since the last call is
// returned. Within a step, what loses its last user and gets another stays untouched.
func (e *engine) take() *changes {
	for !e.idle.empty() {
		e.sweep()
	}
	out := e.changes
	out.net()
	e.changes = newChanges(e.content)
	return out
}

func (e *engine) sweep() {
	unused := e.idle
	e.idle = newIdle()
	for key := range unused.policies {
		if s := e.policies[key]; s != nil && s.selected == 0 && s.live != nil {
			e.release(s)
		}
	}
	for name := range unused.groups {
		if g := e.groups[name]; g != nil && g.users == 0 {
			delete(e.groups, name)
			e.setChain(name, nil)
		}
	}
	for set := range unused.constants {
		if users, there := e.constants[set]; there && users == 0 {
			delete(e.constants, set)
			e.dropSet(set)
		}
	}
	for key := range unused.collectors {
		if c := e.collectors[key]; c != nil && c.users == 0 {
			e.stopCollector(c)
		}
	}
}

func put[V any](m map[string]map[string]V, a, b string, v V) {
	if m[a] == nil {
		m[a] = map[string]V{}
	}
	m[a][b] = v
}

func drop[V any](m map[string]map[string]V, a, b string) {
	if delete(m[a], b); len(m[a]) == 0 {
		delete(m, a)
	}
}

// collector fills a pair of sets from pods.
type collector struct {
	collectorSpec
	users  int
	got    map[string][]Element // by pod UID
	counts map[Element]int
}

func (e *engine) startCollector(spec collectorSpec) *collector {
	c := &collector{collectorSpec: spec, got: map[string][]Element{}, counts: map[Element]int{}}
	e.collectors[spec.key] = c
	put(e.collectorOf, spec.namespace, spec.key, c)
	for _, set := range spec.sets {
		e.addSet(set)
	}
	pods := e.pods
	if spec.namespace != "" {
		pods = e.podsIn[spec.namespace]
	}
	for uid, p := range pods {
		e.collect(c, uid, p)
	}
	return c
}

func (e *engine) stopCollector(c *collector) {
	delete(e.collectors, c.key)
	drop(e.collectorOf, c.namespace, c.key)
	for _, set := range c.sets {
		e.dropSet(set)
	}
}

// collect brings a pod's elements in step; several pods may have the same one.
func (e *engine) collect(c *collector, uid string, p *Pod) {
	var now []Element
	if p != nil {
		now = c.elements(p, e.namespaces[p.Namespace])
	}
	before := c.got[uid]
	if slices.Equal(before, now) {
		return
	}
	if c.got[uid] = now; len(now) == 0 {
		delete(c.got, uid)
	}
	for _, x := range now {
		if c.counts[x]++; c.counts[x] == 1 {
			e.setElement(c.sets[version(x.Addr)], x, true)
		}
	}
	for _, x := range before {
		if c.counts[x]--; c.counts[x] == 0 {
			delete(c.counts, x)
			e.setElement(c.sets[version(x.Addr)], x, false)
		}
	}
}
