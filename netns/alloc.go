package netns

import (
	"fmt"
	"net/netip"
	"slices"
)

// allocator hands out addresses of the podCIDRs: the next free one after a cursor that
// goes round, so that an address is not reused soon. It is filled from the kernel at
// start and holds nothing that the kernel does not. Not safe for concurrent use.
type allocator struct {
	ranges []ipRange
	used   map[netip.Addr]string // the pod's UID
}

type ipRange struct {
	prefix netip.Prefix
	last   netip.Addr // the last one handed out, or invalid
}

func newAllocator() *allocator { return &allocator{used: map[netip.Addr]string{}} }

// setCIDRs changes the ranges; a range that stays keeps its cursor.
func (a *allocator) setCIDRs(prefixes []netip.Prefix) {
	old := a.ranges
	a.ranges = nil
	for _, p := range prefixes {
		r := ipRange{prefix: p}
		if i := slices.IndexFunc(old, func(o ipRange) bool { return o.prefix == p }); i >= 0 {
			r.last = old[i].last
		}
		a.ranges = append(a.ranges, r)
	}
}

// claim records addresses that the kernel already has.
func (a *allocator) claim(uid string, ips []netip.Addr) {
	for _, ip := range ips {
		a.used[ip] = uid
	}
}

// resume moves the cursors behind these addresses (those of the youngest pod).
func (a *allocator) resume(ips []netip.Addr) {
	for i := range a.ranges {
		for _, ip := range ips {
			if a.ranges[i].prefix.Contains(ip) {
				a.ranges[i].last = ip
			}
		}
	}
}

// allocate takes one address of each podCIDR, in their order; all or none.
func (a *allocator) allocate(uid string) ([]netip.Addr, error) {
	ips := make([]netip.Addr, 0, len(a.ranges))
	for i := range a.ranges {
		ip, ok := a.ranges[i].next(a.used)
		if !ok {
			a.release(uid, ips)
			return nil, fmt.Errorf("no free address in podCIDR %s", a.ranges[i].prefix)
		}
		a.used[ip] = uid
		ips = append(ips, ip)
	}
	return ips, nil
}

// release gives addresses back if they are the pod's.
func (a *allocator) release(uid string, ips []netip.Addr) {
	for _, ip := range ips {
		if a.used[ip] == uid {
			delete(a.used, ip)
		}
	}
}

// next is the next free address after the cursor, once round at most.
func (r *ipRange) next(used map[netip.Addr]string) (netip.Addr, bool) {
	first, start := r.first(), r.last
	if !start.IsValid() || !r.prefix.Contains(start) {
		start = first.Prev()
	}
	for ip, wrapped := start.Next(), false; ; ip = ip.Next() {
		if !r.usable(ip) {
			if wrapped {
				return netip.Addr{}, false
			}
			ip, wrapped = first, true
			if !r.usable(ip) {
				return netip.Addr{}, false
			}
		}
		if _, taken := used[ip]; !taken {
			r.last = ip
			return ip, true
		}
		if wrapped && ip == start {
			return netip.Addr{}, false
		}
	}
}

// first usable address: the network's own (IPv6: the subnet routers' anycast) and the
// first host address, which others take for a gateway, stay free.
func (r *ipRange) first() netip.Addr { return r.prefix.Addr().Next().Next() }

// usable says whether ip, at or behind first, is in range; IPv4's last is the broadcast.
func (r *ipRange) usable(ip netip.Addr) bool {
	if !r.prefix.Contains(ip) || ip.Compare(r.first()) < 0 {
		return false
	}
	return ip.Is6() || r.prefix.Contains(ip.Next())
}
