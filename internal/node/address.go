package node

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses returns the node's addresses, the primary first: those given, or the one that
// faces the API servers and the other family's on the same interface.
func Addresses(given []netip.Addr, servers []string) ([]netip.Addr, error) {
	if len(given) > 0 {
		return given, nil
	}
	primary, err := facing(servers)
	if err != nil {
		return nil, err
	}
	addrs := []netip.Addr{primary}
	if other, ok := sibling(primary); ok {
		addrs = append(addrs, other)
	}
	return addrs, nil
}

// facing is the source address towards the first API server that has a route, or else of a default route.
func facing(servers []string) (netip.Addr, error) {
	for _, server := range servers {
		u, err := url.Parse(server)
		if err != nil {
			continue
		}
		if addr, ok := source(u.Host); ok {
			return addr, nil
		}
	}
	for _, anywhere := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} {
		if addr, ok := source(anywhere); ok {
			return addr, nil
		}
	}
	return netip.Addr{}, errors.New("find the node's address: no route to an API server and no default route; set nodeIPs")
}

// source is the local address that the kernel would use; nothing is sent.
func source(hostport string) (netip.Addr, bool) {
	conn, err := net.Dial("udp", hostport)
	if err != nil {
		return netip.Addr{}, false
	}
	defer conn.Close()
	addr := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone("")
	return addr, usable(addr)
}

func usable(addr netip.Addr) bool {
	return addr.IsValid() && !addr.IsLoopback() && !addr.IsLinkLocalUnicast() && !addr.IsUnspecified() && !addr.IsMulticast()
}

// sibling is a stable address of the other family on the interface that has addr.
func sibling(addr netip.Addr) (netip.Addr, bool) {
	links, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return netip.Addr{}, false
	}
	index := slices.IndexFunc(links, func(a netlink.Addr) bool { return toAddr(a) == addr })
	if index < 0 {
		return netip.Addr{}, false
	}
	for _, a := range links {
		other := toAddr(a)
		if a.LinkIndex == links[index].LinkIndex && other.Is4() != addr.Is4() && usable(other) && a.Flags&unstable == 0 {
			return other, true
		}
	}
	return netip.Addr{}, false
}

// unstable addresses go away by themselves. A tentative one is not among them: it will be
// good once its duplicate check has ended.
const unstable = unix.IFA_F_TEMPORARY | unix.IFA_F_DEPRECATED | unix.IFA_F_DADFAILED

func toAddr(a netlink.Addr) netip.Addr {
	if a.IPNet == nil {
		return netip.Addr{}
	}
	addr, _ := netip.AddrFromSlice(a.IP)
	return addr.Unmap()
}

// ParsePodCIDRs reads the podCIDRs of a Node.
func ParsePodCIDRs(cidrs []string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, cidr := range cidrs {
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, fmt.Errorf("parse podCIDR: %w", err)
		}
		prefixes = append(prefixes, prefix.Masked())
	}
	return prefixes, nil
}
