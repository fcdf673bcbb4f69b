package netns

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// hostUp brings the host's end up, before the pod's: only then has the pod's a carrier.
func (s *setup) hostUp() error {
	return wrap(s.m.nl.LinkSetUp(s.link), "bring up link %s", s.name)
}

// kernelPatience is how long a set-up waits for the kernel's work queues. They are held up
// by the same lock as every change of a link on the machine: under load for seconds.
const kernelPatience = 30 * time.Second

// canSend waits until a link that is up can send. An end of a veth pair has no queue
// and no IPv6 until the kernel's link watch has seen the carrier, and drops packets; that
// takes up to seconds while other namespaces are being destroyed. Asking for the link makes
// kernels since 6.7 do it at once, and tells when it is done on older ones.
func canSend(h *netlink.Handle, index int) error {
	for end := time.Now().Add(kernelPatience); ; time.Sleep(time.Millisecond) {
		l, err := h.LinkByIndex(index)
		if err != nil {
			return fmt.Errorf("look up link %d: %w", index, err)
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("link %s has no carrier after %s", l.Attrs().Name, kernelPatience)
		}
	}
}

// hostSide gives the host's end its neighbours and routes.
func (s *setup) hostSide() error {
	if err := canSend(s.m.nl, s.link.Attrs().Index); err != nil {
		return err
	}
	for _, ip := range s.rec.ips {
		if err := permanentNeighbour(s.m.nl, s.link, ip, podMAC(s.pod.PodUID)); err != nil {
			return err
		}
		if err := s.hostRoute(ip); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(slices.Collect(maps.Keys(s.rec.ports)), func(k hostPortKey) bool { return k.ip.Is4() }) {
		return nil
	}
	// Host ports on 127.0.0.1: the kernel routes a loopback source out of this link, and
	// the answer back, only with route_localnet. The antispoof chain drops what a pod
	// itself sends to 127.0.0.0/8.
	return s.m.host.Do(func() error {
		_, err := linuxns.SetSysctl(linuxns.Sysctl{Key: "net/ipv4/conf/" + s.name + "/route_localnet", Value: "1"})
		return err
	})
}

// hostRoute leads the pod's address to its link. A route of somebody else to the same
// address is an error, not replaced.
func (s *setup) hostRoute(ip netip.Addr) error {
	r := &netlink.Route{
		LinkIndex: s.link.Attrs().Index, Dst: ipNet(netip.PrefixFrom(ip, ip.BitLen())), Protocol: RouteProtocol,
		Scope: netlink.SCOPE_LINK, Type: unix.RTN_UNICAST, Table: unix.RT_TABLE_MAIN,
	}
	err := s.m.nl.RouteAdd(r)
	if !errors.Is(err, unix.EEXIST) {
		return wrap(err, "add route to %s", ip)
	}
	have, err := s.m.nl.RouteListFiltered(netlinkFamily(ip), &netlink.Route{Dst: r.Dst, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routes to %s: %w", ip, err)
	}
	for _, h := range have {
		if h.Protocol != RouteProtocol {
			return fmt.Errorf("add route to %s: there is one of another program (protocol %d)", ip, h.Protocol)
		}
		if h.LinkIndex == r.LinkIndex {
			return nil
		}
	}
	return wrap(s.m.nl.RouteReplace(r), "replace route to %s", ip)
}

// permanentNeighbour spares the link address resolution.
func permanentNeighbour(h *netlink.Handle, l netlink.Link, ip netip.Addr, mac net.HardwareAddr) error {
	return wrap(h.NeighSet(&netlink.Neigh{
		LinkIndex: l.Attrs().Index, Family: netlinkFamily(ip), State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac,
	}), "set neighbour %s", ip)
}

func netlinkFamily(ip netip.Addr) int {
	if ip.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// wrap is nil for nil, else the error with what was tried.
func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}
