package bgp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// RouteProtocol marks routes that peers told us ("u"; host-gw's are 118).
const RouteProtocol = 117

// metric puts them behind host-gw's and everybody's routes to the same prefix, in IPv6
// too, where 0 means 1024.
const metric = 2048

// kernel reads and changes our routes by netlink.
type kernel struct{ h *netlink.Handle }

// routes lists ours. Those that this package would not have made come in odd.
func (k kernel) routes() (have map[netip.Prefix]FIB, odd []netlink.Route, err error) {
	var list []netlink.Route
	for try := 0; ; try++ {
		list, err = k.h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: RouteProtocol, Table: unix.RT_TABLE_MAIN},
			netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		if !errors.Is(err, netlink.ErrDumpInterrupted) || try == 10 {
			break
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list routes: %w", err)
	}
	have = make(map[netip.Prefix]FIB, len(list))
	for i := range list {
		f, ok := fromNetlink(&list[i])
		if _, twice := have[f.Prefix]; !ok || twice {
			odd = append(odd, list[i])
			continue
		}
		have[f.Prefix] = f
	}
	return have, odd, nil
}

func fromNetlink(n *netlink.Route) (FIB, bool) {
	var f FIB
	if n.Dst == nil || n.Priority != metric || n.Type != unix.RTN_UNICAST {
		return f, false
	}
	a, _ := netip.AddrFromSlice(n.Dst.IP)
	bits, _ := n.Dst.Mask.Size()
	f.Prefix = netip.PrefixFrom(a.Unmap(), bits)
	hop := func(gw net.IP, link int) {
		a, _ := netip.AddrFromSlice(gw)
		f.Hops = append(f.Hops, Hop{a.Unmap(), link})
	}
	if len(n.MultiPath) == 0 {
		hop(n.Gw, n.LinkIndex)
	}
	for _, m := range n.MultiPath {
		hop(m.Gw, m.LinkIndex)
	}
	slices.SortFunc(f.Hops, Hop.compare)
	return f, true
}

func (f FIB) netlink() *netlink.Route {
	n := &netlink.Route{
		Dst:      &net.IPNet{IP: f.Prefix.Addr().AsSlice(), Mask: net.CIDRMask(f.Prefix.Bits(), f.Prefix.Addr().BitLen())},
		Protocol: RouteProtocol, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST, Priority: metric,
	}
	if len(f.Hops) == 1 {
		n.LinkIndex, n.Gw = f.Hops[0].Link, f.Hops[0].Gateway.AsSlice()
		return n
	}
	for _, h := range f.Hops {
		n.MultiPath = append(n.MultiPath, &netlink.NexthopInfo{LinkIndex: h.Link, Gw: h.Gateway.AsSlice()})
	}
	return n
}

func (k kernel) add(f FIB) error {
	if err := k.h.RouteAdd(f.netlink()); err != nil {
		return fmt.Errorf("add route %s: %w", f, err)
	}
	return nil
}

// replace is one step for the kernel: packets find the old or the new route.
func (k kernel) replace(f FIB) error {
	if err := k.h.RouteReplace(f.netlink()); err != nil {
		return fmt.Errorf("replace route %s: %w", f, err)
	}
	return nil
}

// remove deletes a route of ours; missing is success.
func (k kernel) remove(f FIB) error {
	n := f.netlink()
	n.MultiPath, n.Gw, n.LinkIndex = nil, nil, 0 // all hops
	if err := k.h.RouteDel(n); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route %s: %w", f, err)
	}
	return nil
}

// resolve says by which neighbour and link the host reaches a next hop.
func (k kernel) resolve(a netip.Addr) (Hop, error) {
	if !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
		return Hop{}, fmt.Errorf("next hop %s is no address of a neighbour", a)
	}
	list, err := k.h.RouteGet(a.WithZone("").AsSlice())
	if err != nil {
		return Hop{}, fmt.Errorf("look up next hop %s: %w", a, err)
	}
	if len(list) == 0 || list[0].Type != unix.RTN_UNICAST {
		return Hop{}, fmt.Errorf("next hop %s: %w", a, unix.EHOSTUNREACH)
	}
	hop := Hop{Gateway: a, Link: list[0].LinkIndex}
	if gw, ok := netip.AddrFromSlice(list[0].Gw); ok {
		hop.Gateway = gw.Unmap()
	}
	link, err := k.h.LinkByIndex(hop.Link)
	if err != nil {
		return Hop{}, fmt.Errorf("look up link %d of next hop %s: %w", hop.Link, a, err)
	}
	if link.Attrs().RawFlags&unix.IFF_RUNNING == 0 {
		return Hop{}, fmt.Errorf("next hop %s: link %s has no carrier: %w", a, link.Attrs().Name, unix.ENETDOWN)
	}
	return hop, nil
}

// matters says whether a netlink message may change how next hops are reached, or our
// routes; uses and asked know links and addresses of next hops.
func matters(msg *syscall.NetlinkMessage, ours map[netip.Prefix]FIB, uses map[int]bool, asked func(netip.Addr) bool) bool {
	if msg == nil {
		return true
	}
	d := msg.Data
	switch msg.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return len(d) >= unix.SizeofIfInfomsg && uses[int(int32(binary.NativeEndian.Uint32(d[4:])))]
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return len(d) >= unix.SizeofIfAddrmsg && d[3] < unix.RT_SCOPE_LINK
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return len(d) >= unix.SizeofRtMsg && routeMatters(msg.Header.Type == unix.RTM_DELROUTE, d, ours, asked)
	}
	return false
}

func routeMatters(deleted bool, d []byte, ours map[netip.Prefix]FIB, asked func(netip.Addr) bool) bool {
	family, bits, protocol := d[0], int(d[1]), d[5]
	if family != unix.AF_INET && family != unix.AF_INET6 {
		return false
	}
	var dst netip.Addr
	if raw, ok := linuxns.Attribute(d[unix.SizeofRtMsg:], unix.RTA_DST); ok {
		dst, _ = netip.AddrFromSlice(raw)
	}
	switch {
	case protocol == RouteProtocol:
		_, have := ours[netip.PrefixFrom(dst, bits)]
		return deleted && have
	case !dst.IsValid():
		return true // a default route
	case dst.IsLinkLocalUnicast(), dst.IsMulticast():
		return false
	case bits == dst.BitLen():
		return asked(dst) // a host route, such as to a pod
	}
	return true
}
