package loadbalancer

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/vk-metal/vk-metal/internal/config"
)

// Service is what of a LoadBalancer Service decides about its addresses.
type Service struct {
	Namespace, Name string
	Labels          map[string]string
	Created         time.Time
	// Families are the IP versions that it wants (true: IPv4), the first one must be had;
	// the second as well with Both.
	Families []bool
	Both     bool
	// Requested are addresses that it asks for, Pool the pool; both may be empty.
	Requested []netip.Addr
	Pool      string
	// SharingKey lets Services of one namespace share an address. Ports are protocol and
	// number; Local is externalTrafficPolicy Local, for Endpoints, its selector.
	SharingKey string
	Ports      []string
	Local      bool
	Endpoints  string
	// Have is what its status says.
	Have []netip.Addr
	// Bad is why its wishes cannot be read.
	Bad error
}

func (s *Service) key() string { return s.Namespace + "/" + s.Name }

// Decision is what a Service gets; Err, if not nil, why it gets less than it wants.
type Decision struct {
	Addrs []netip.Addr
	Err   error
}

// Errors of decisions.
var (
	ErrExhausted = errors.New("no free address")
	ErrTaken     = errors.New("address is taken")
	ErrNoPool    = errors.New("no pool")
)

// Allocate decides for all Services at once, by namespace/name. An address that a Service
// has stays its own; of two that have one and may not share it the older keeps it.
func Allocate(pools []config.Pool, services []Service) map[string]Decision {
	a := allocation{pools: pools, users: map[netip.Addr][]*Service{}, out: map[string]Decision{}}
	order := make([]*Service, len(services))
	for i := range services {
		order[i] = &services[i]
	}
	slices.SortFunc(order, func(x, y *Service) int {
		if c := x.Created.Compare(y.Created); c != 0 {
			return c
		}
		return strings.Compare(x.key(), y.key())
	})
	for _, s := range order {
		a.keep(s)
	}
	for _, s := range order {
		a.complete(s)
	}
	return a.out
}

type allocation struct {
	pools []config.Pool
	users map[netip.Addr][]*Service
	out   map[string]Decision
}

// keep confirms what the Service has and still wants.
func (a *allocation) keep(s *Service) {
	var d Decision
	for _, addr := range s.Have {
		if !a.wants(s, addr) || slices.ContainsFunc(d.Addrs, func(o netip.Addr) bool { return o.Is4() == addr.Is4() }) {
			continue
		}
		if err := a.mayUse(s, addr); err != nil {
			d.Err = err
			continue
		}
		a.take(s, addr)
		d.Addrs = append(d.Addrs, addr)
	}
	a.out[s.key()] = d
}

// wants says whether an address that the Service has fits its wishes. One that is in no
// pool any more stays: pools are edited by hand.
func (a *allocation) wants(s *Service, addr netip.Addr) bool {
	if !slices.Contains(s.Families, addr.Is4()) {
		return false
	}
	if len(s.Requested) > 0 && slices.ContainsFunc(s.Requested, func(r netip.Addr) bool { return r.Is4() == addr.Is4() }) {
		return slices.Contains(s.Requested, addr)
	}
	pool := a.poolOf(addr)
	return pool == nil || s.Pool == "" || s.Pool == pool.Name
}

// complete finds what the Service lacks.
func (a *allocation) complete(s *Service) {
	d := a.out[s.key()]
	if s.Bad != nil {
		d.Err = s.Bad
		a.out[s.key()] = d
		return
	}
	for i, four := range s.Families {
		if slices.ContainsFunc(d.Addrs, func(o netip.Addr) bool { return o.Is4() == four }) {
			continue
		}
		addr, err := a.find(s, four)
		if err != nil {
			if i == 0 || s.Both {
				d.Err = err
			}
			continue
		}
		a.take(s, addr)
		d.Addrs = append(d.Addrs, addr)
		if errors.Is(d.Err, ErrTaken) {
			d.Err = fmt.Errorf("%w; it has %s now", d.Err, addr)
		}
	}
	if s.Both && len(d.Addrs) < len(s.Families) && d.Err != nil {
		for _, addr := range d.Addrs { // all or nothing
			a.users[addr] = slices.DeleteFunc(a.users[addr], func(o *Service) bool { return o == s })
		}
		d.Addrs = nil
	}
	a.out[s.key()] = d
}

func (a *allocation) take(s *Service, addr netip.Addr) { a.users[addr] = append(a.users[addr], s) }

// find is a free address of one IP version: a requested one, or the first of the pools.
func (a *allocation) find(s *Service, four bool) (netip.Addr, error) {
	for _, r := range s.Requested {
		if r.Is4() != four {
			continue
		}
		pool := a.poolOf(r)
		if pool == nil || !open(pool, s) {
			return r, fmt.Errorf("%w: the requested address %s is in none that this Service may use", ErrNoPool, r)
		}
		return r, a.mayUse(s, r)
	}
	some := false
	if addr, ok := a.shared(s, four); ok {
		return addr, nil
	}
	for i := range a.pools {
		pool := &a.pools[i]
		if !open(pool, s) || s.Pool == "" && !pool.Auto || s.Pool != "" && s.Pool != pool.Name {
			continue
		}
		for _, r := range pool.Ranges {
			if r.First.Is4() != four {
				continue
			}
			some = true
			for addr := r.First; r.Contains(addr); addr = addr.Next() {
				if len(a.users[addr]) == 0 {
					return addr, nil
				}
			}
		}
	}
	version := map[bool]string{true: "IPv4", false: "IPv6"}[four]
	if some {
		return netip.Addr{}, fmt.Errorf("%w of %s in the pools that this Service may use", ErrExhausted, version)
	}
	return netip.Addr{}, fmt.Errorf("%w has %s addresses for this Service", ErrNoPool, version)
}

// shared is an address that another Service with the same key has.
func (a *allocation) shared(s *Service, four bool) (best netip.Addr, ok bool) {
	if s.SharingKey == "" {
		return best, false
	}
	for addr, users := range a.users {
		if len(users) > 0 && addr.Is4() == four && a.wants(s, addr) && a.mayUse(s, addr) == nil && (!ok || addr.Less(best)) {
			best, ok = addr, true
		}
	}
	return best, ok
}

// mayUse is nil if all who have the address can share it with s.
func (a *allocation) mayUse(s *Service, addr netip.Addr) error {
	for _, o := range a.users[addr] {
		switch {
		case o.SharingKey == "" || o.SharingKey != s.SharingKey || o.Namespace != s.Namespace:
			return fmt.Errorf("%w: Service %s has %s", ErrTaken, o.key(), addr)
		case slices.ContainsFunc(o.Ports, func(p string) bool { return slices.Contains(s.Ports, p) }):
			return fmt.Errorf("%w: Service %s has a port of this one on %s", ErrTaken, o.key(), addr)
		case o.Local != s.Local || o.Local && o.Endpoints != s.Endpoints:
			return fmt.Errorf("%w: Service %s on %s has another externalTrafficPolicy, or Local with another selector", ErrTaken, o.key(), addr)
		}
	}
	return nil
}

func (a *allocation) poolOf(addr netip.Addr) *config.Pool {
	for i := range a.pools {
		if slices.ContainsFunc(a.pools[i].Ranges, func(r config.Range) bool { return r.Contains(addr) }) {
			return &a.pools[i]
		}
	}
	return nil
}

func open(p *config.Pool, s *Service) bool {
	return (len(p.Namespaces) == 0 || slices.Contains(p.Namespaces, s.Namespace)) && p.ServiceSelector.Matches(labels.Set(s.Labels))
}
