package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// podSysctls are what a pod's namespace gets before the pod's own: ports below 1024 and
// ping for every user of the pod, as container runtimes set them; no router
// advertisements or duplicate detection on a link whose only neighbour is the host.
var podSysctls = []linuxns.Sysctl{
	{Key: "net/ipv4/ip_unprivileged_port_start", Value: "0"},
	{Key: "net/ipv4/ping_group_range", Value: "0 2147483647"},
	{Key: "net/ipv6/conf/" + podLink + "/accept_ra", Value: "0"},
	{Key: "net/ipv6/conf/" + podLink + "/accept_dad", Value: "0"},
}

// podSide configures the inside of the namespace: loopback, addresses, gateways.
func (s *setup) podSide() error {
	return s.ns.Do(func() error {
		for _, c := range podSysctls {
			// Missing: a kernel without IPv6.
			if _, err := linuxns.SetSysctl(c); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink socket in the pod: %w", err)
		}
		defer h.Close()
		return s.podLinks(h)
	})
}

func (s *setup) podLinks(h *netlink.Handle) error {
	if err := up(h, "lo"); err != nil {
		return err
	}
	eth0, err := h.LinkByName(podLink)
	if err != nil {
		return fmt.Errorf("look up the pod's %s: %w", podLink, err)
	}
	if err := h.LinkSetUp(eth0); err != nil {
		return fmt.Errorf("bring up the pod's %s: %w", podLink, err)
	}
	if err := canSend(h, eth0.Attrs().Index); err != nil {
		return err
	}
	for _, ip := range s.rec.ips {
		a := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(ip, ip.BitLen())), Flags: unix.IFA_F_NODAD}
		if err := h.AddrReplace(eth0, a); err != nil {
			return fmt.Errorf("add address %s: %w", ip, err)
		}
	}
	for _, ip := range s.rec.ips {
		if err := podGateway(h, eth0, ip); err != nil {
			return err
		}
	}
	return canReceive(h, s.rec.ips)
}

// canReceive waits until the addresses are the pod's own. The kernel makes an IPv6
// address valid for reception in a work queue, even without duplicate detection, and
// answers "no such address" until then (addrconf_dad_completed).
func canReceive(h *netlink.Handle, ips []netip.Addr) error {
	const pause = 200 * time.Microsecond
	end := time.Now().Add(kernelPatience)
	for _, ip := range ips {
		for ip.Is6() {
			routes, err := h.RouteGet(ip.AsSlice())
			if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
				break
			}
			if time.Now().After(end) {
				return fmt.Errorf("address %s is not usable after %s", ip, kernelPatience)
			}
			time.Sleep(pause)
		}
	}
	return nil
}

// podGateway makes the host the way to everything, by an address that nobody has.
func podGateway(h *netlink.Handle, eth0 netlink.Link, ip netip.Addr) error {
	gw, all := gateway4, netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if ip.Is6() {
		gw, all = gateway6, netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if err := permanentNeighbour(h, eth0, gw, hostMAC); err != nil {
		return err
	}
	return wrap(h.RouteReplace(&netlink.Route{
		LinkIndex: eth0.Attrs().Index, Dst: ipNet(all), Gw: gw.AsSlice(), Src: ip.AsSlice(),
		Flags: int(netlink.FLAG_ONLINK), Protocol: unix.RTPROT_BOOT,
	}), "set the pod's default route for %s", ip)
}

func up(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("look up the pod's %s: %w", name, err)
	}
	return wrap(h.LinkSetUp(l), "bring up the pod's %s", name)
}
