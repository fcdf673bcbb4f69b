package hostgw

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RouteProtocol marks our routes in the kernel ("v"; unused in iproute2's rt_protos and
// by Calico 80, kube-router 17, BIRD 12, zebra 11, BGP 186). Routes with another number
// are never touched.
const RouteProtocol = 118

// unreachableMetric puts the local podCIDR's unreachable route behind any other route to
// the same prefix.
const unreachableMetric = 32767

// kernel reads and changes routes by netlink.
type kernel struct{ h *netlink.Handle }

// routes lists our routes; extra are those beyond the first of each destination.
func (k kernel) routes() (have map[netip.Prefix]route, extra []route, err error) {
	have = map[netip.Prefix]route{}
	for try := 0; ; try++ {
		list, err := k.h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: RouteProtocol, Table: unix.RT_TABLE_MAIN},
			netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		if errors.Is(err, netlink.ErrDumpInterrupted) && try < 10 {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("list routes: %w", err)
		}
		for i := range list {
			r := fromNetlink(&list[i])
			if _, dup := have[r.dst]; dup {
				extra = append(extra, r)
				continue
			}
			have[r.dst] = r
		}
		return have, extra, nil
	}
}

func fromNetlink(n *netlink.Route) route {
	r := route{unreachable: n.Type == unix.RTN_UNREACHABLE}
	r.blocked = r.unreachable && n.Priority != unreachableMetric
	if n.Dst != nil {
		a, _ := netip.AddrFromSlice(n.Dst.IP)
		bits, _ := n.Dst.Mask.Size()
		r.dst = netip.PrefixFrom(a.Unmap(), bits)
	}
	if !r.unreachable {
		r.link = n.LinkIndex
		gw, _ := netip.AddrFromSlice(n.Gw)
		r.gw = gw.Unmap()
	}
	return r
}

func (r route) netlink() *netlink.Route {
	n := &netlink.Route{
		Dst:      &net.IPNet{IP: r.dst.Addr().AsSlice(), Mask: net.CIDRMask(r.dst.Bits(), r.dst.Addr().BitLen())},
		Protocol: RouteProtocol, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST,
	}
	if r.unreachable {
		if n.Type = unix.RTN_UNREACHABLE; !r.blocked {
			n.Priority = unreachableMetric
		}
		return n
	}
	if n.LinkIndex, n.Gw = r.link, r.gw.AsSlice(); n.Gw == nil {
		n.Scope = netlink.SCOPE_LINK
	}
	if r.outer.IsValid() {
		n.Encap, n.Flags = ipEncap{r.outer}, int(netlink.FLAG_ONLINK)
	}
	return n
}

// add makes a route and never replaces one.
func (k kernel) add(r route) error {
	err := k.h.RouteAdd(r.netlink())
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add route %s: %w", r, ErrConflict)
	}
	if err != nil {
		return fmt.Errorf("add route %s: %w", r, err)
	}
	return nil
}

// replace changes a route that is ours.
func (k kernel) replace(r route) error {
	if err := k.h.RouteReplace(r.netlink()); err != nil {
		return fmt.Errorf("replace route %s: %w", r, err)
	}
	return nil
}

// remove deletes a route; the kernel compares our protocol too. Missing is success.
func (k kernel) remove(r route) error {
	if err := k.h.RouteDel(r.netlink()); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route %s: %w", r, err)
	}
	return nil
}

// lookup asks which way a packet to the address would go.
func (k kernel) lookup(a netip.Addr) (hop, error) {
	list, err := k.h.RouteGet(a.AsSlice())
	if err != nil {
		return hop{}, err
	}
	if len(list) == 0 {
		return hop{}, unix.ENETUNREACH
	}
	r := list[0]
	switch r.Type {
	case unix.RTN_LOCAL:
		return hop{local: true}, nil
	case unix.RTN_UNICAST:
		return hop{link: r.LinkIndex, onLink: r.Gw == nil && r.Via == nil}, nil
	}
	return hop{}, unix.ENETUNREACH
}

// subnets are the prefixes of the host's own addresses, link-local ones left out.
func (k kernel) subnets() ([]netip.Prefix, error) {
	for try := 0; ; try++ {
		list, err := k.h.AddrList(nil, netlink.FAMILY_ALL)
		if errors.Is(err, netlink.ErrDumpInterrupted) && try < 10 {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		var out []netip.Prefix
		for _, a := range list {
			ip, _ := netip.AddrFromSlice(a.IP)
			bits, _ := a.Mask.Size()
			if p := netip.PrefixFrom(ip.Unmap(), bits).Masked(); !ip.IsLinkLocalUnicast() {
				out = append(out, p)
			}
		}
		return out, nil
	}
}
