package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// local is a pod of this node: its addresses, and the policies that select it.
type local struct {
	pod    *Pod
	groups [2]string // chain by Direction; "" is not isolated
	keys   []string  // of the policies
}

// group is a chain with all policies that select a pod, shared by the pods with the same.
type group struct{ users int }

// owners are the pods of this node that claim an address: while one starts, the API may still
// show it at another that has ended.
type owners map[netip.Addr]map[string]*local

// best is whose the address is.
func (o owners) best(a netip.Addr) *local {
	var best *local
	for _, uid := range slices.Sorted(maps.Keys(o[a])) {
		if l := o[a][uid]; best == nil || l.before(best) {
			best = l
		}
	}
	return best
}

func (l *local) before(o *local) bool {
	if l.pod.Admitted != o.pod.Admitted {
		return l.pod.Admitted
	}
	return l.pod.Created > o.pod.Created
}

// place brings what this node does for one pod in step.
func (e *engine) place(uid string, p *Pod) {
	old := e.locals[uid]
	next := e.localOf(p)
	if old == nil && next == nil {
		return
	}
	if next != nil {
		e.locals[uid] = next
		e.choose(next)
	} else {
		delete(e.locals, uid)
	}
	var touched []netip.Addr
	if next != nil {
		for _, a := range next.pod.IPs {
			if e.owners[a] == nil {
				e.owners[a] = map[string]*local{}
			}
			e.owners[a][uid] = next
			touched = append(touched, a)
		}
	}
	if old != nil {
		e.unselect(old)
		for _, a := range old.pod.IPs {
			if next != nil && slices.Contains(next.pod.IPs, a) {
				continue
			}
			if delete(e.owners[a], uid); len(e.owners[a]) == 0 {
				delete(e.owners, a)
			}
			touched = append(touched, a)
		}
	}
	for _, a := range touched {
		e.guard(a)
	}
}

// localOf is nil for a pod that policies of this node do not isolate.
func (e *engine) localOf(p *Pod) *local {
	if p == nil || p.HostNetwork || len(p.IPs) == 0 || !p.Admitted && (p.Finished || p.Node != e.node) {
		return nil
	}
	l := &local{pod: p}
	var by [2][]string
	for _, key := range slices.Sorted(maps.Keys(e.policiesIn[p.Namespace])) {
		s := e.policiesIn[p.Namespace][key]
		if !s.selects(p) {
			continue
		}
		l.keys = append(l.keys, key)
		for _, d := range directions {
			if s.isolates[d] {
				by[d] = append(by[d], key)
			}
		}
	}
	for _, d := range directions {
		if len(by[d]) > 0 {
			l.groups[d] = e.groupChain(d, by[d])
		}
	}
	return l
}

// groupChain is the chain for the policies, made if need be.
func (e *engine) groupChain(d Direction, keys []string) string {
	name := hashed("pods-"+d.String(), strings.Join(keys, " "))
	if e.groups[name] == nil {
		e.groups[name] = &group{}
		var rules []Rule
		for _, key := range keys {
			rules = append(rules, Rule{Direction: d, Jump: policyChain(key, d)})
		}
		e.setChain(name, rules)
	}
	return name
}

// choose counts the pod for its policies and groups.
func (e *engine) choose(l *local) {
	for _, key := range l.keys {
		s := e.policies[key]
		if s.selected++; s.live == nil {
			e.refresh(s)
		}
	}
	for _, name := range l.groups {
		if name != "" {
			e.groups[name].users++
		}
	}
}

func (e *engine) unselect(l *local) {
	for _, key := range l.keys {
		if s := e.policies[key]; s != nil {
			if s.selected--; s.selected == 0 {
				e.idle.policies[key] = true
			}
		}
	}
	for _, name := range l.groups {
		if name == "" {
			continue
		}
		if e.groups[name].users--; e.groups[name].users == 0 {
			e.idle.groups[name] = true
		}
	}
}

// guard brings what the table says of an address in step with its owner.
func (e *engine) guard(a netip.Addr) {
	l := e.owners.best(a)
	isolated := false
	for _, d := range directions {
		chain := ""
		if l != nil {
			chain = l.groups[d]
		}
		isolated = isolated || chain != ""
		e.isolate(target{d, a}, chain)
	}
	e.setElement(isolatedSet(a.Is6()), Element{Addr: a}, isolated)
	e.setElement(selfSet(a.Is6()), Element{Addr: a, To: a}, l != nil)
}
