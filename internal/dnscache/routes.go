package dnscache

import (
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// everything is 0.0.0.0/0 or ::/0.
func everything(ipv6 bool) *net.IPNet {
	if ipv6 {
		return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
}

// ourRoute makes everything local, on the loopback interface with this index.
func ourRoute(lo int, ipv6 bool) *netlink.Route {
	return &netlink.Route{
		Table: routeTable, LinkIndex: lo, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST, Protocol: RouteProtocol, Dst: everything(ipv6),
	}
}

func ourRule(ipv6 bool) *netlink.Rule {
	r, bit := netlink.NewRule(), uint32(mark)
	r.Family, r.Table, r.Priority, r.Mark, r.Mask, r.Protocol = netlink.FAMILY_V4, routeTable, rulePriority, mark, &bit, RouteProtocol
	if ipv6 {
		r.Family = netlink.FAMILY_V6
	}
	return r
}
