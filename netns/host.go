package netns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// setHostSysctls turns on what forwarding needs, for the IP versions of the podCIDRs
// only. IPv6 forwarding makes the kernel ignore router advertisements where accept_ra is
// 1; the interfaces that live on them get 2 first, or the host would lose its default route.
func (m *Manager) setHostSysctls(cidrs []netip.Prefix) error {
	return m.host.Do(func() error {
		if len(family(cidrs, true)) > 0 {
			if err := m.setHostSysctl("net/ipv4/ip_forward", "1"); err != nil {
				return err
			}
		}
		if len(family(cidrs, false)) == 0 {
			return nil
		}
		if err := m.keepRouterAdvertisements(); err != nil {
			return err
		}
		return m.setHostSysctl("net/ipv6/conf/all/forwarding", "1")
	})
}

// keepRouterAdvertisements finds the interfaces that live on them by the routes that
// the kernel learned; no other interface is made to trust its neighbours.
func (m *Manager) keepRouterAdvertisements() error {
	routes, err := m.nl.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: unix.RTPROT_RA}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes learned from router advertisements: %w", err)
	}
	for _, r := range routes {
		l, err := m.nl.LinkByIndex(r.LinkIndex)
		if err != nil {
			continue // gone meanwhile
		}
		key := "net/ipv6/conf/" + l.Attrs().Name + "/accept_ra"
		if now, err := linuxns.GetSysctl(key); err != nil || now != "1" {
			continue // off: a daemon handles them in user space
		}
		if err := m.setHostSysctl(key, "2"); err != nil {
			return err
		}
	}
	return nil
}

// setHostSysctl changes a sysctl if need be and notes, once, what it was.
func (m *Manager) setHostSysctl(key, value string) error {
	old, err := linuxns.SetSysctl(linuxns.Sysctl{Key: key, Value: value})
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.sysctls[key]; old != value && !known {
		m.sysctls[key] = old
		m.log.Info("host sysctl changed for pod traffic", "sysctl", key, "was", old, "now", value)
	}
	return nil
}

const defaultMTU = 1500

// uplinkMTU is the MTU of the link that leads to the world; of a host without a default
// route the smallest among the links with a global address.
func uplinkMTU(h *netlink.Handle) int {
	mtu := 0
	take := func(index int) {
		l, err := h.LinkByIndex(index)
		if err != nil || l.Attrs().Flags&net.FlagLoopback != 0 || l.Attrs().Group == LinkGroup {
			return
		}
		if got := l.Attrs().MTU; mtu == 0 || got < mtu {
			mtu = got
		}
	}
	// Documentation addresses: only the default route can lead there. Nothing is sent.
	for _, dst := range []string{"192.0.2.1", "2001:db8::1"} {
		if routes, err := h.RouteGet(net.ParseIP(dst)); err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_UNICAST {
			take(routes[0].LinkIndex)
		}
	}
	if mtu != 0 {
		return mtu
	}
	addrs, _ := h.AddrList(nil, netlink.FAMILY_ALL)
	for _, a := range addrs {
		if a.Scope == unix.RT_SCOPE_UNIVERSE {
			take(a.LinkIndex)
		}
	}
	if mtu == 0 {
		return defaultMTU
	}
	return mtu
}

// watch wakes Run by the kernel's events: links, routes (for the MTU and the end of
// links) and changes of our table by others.
func (m *Manager) watch(ctx context.Context) (stop func(), failed <-chan error, err error) {
	links, err := m.host.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		return nil, nil, err
	}
	tables, err := m.host.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		links.Close()
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	errs, done := make(chan error, 2), make(chan struct{}, 2)
	run := func(w *linuxns.Watch, fn func(*syscall.NetlinkMessage)) {
		if err := w.Run(ctx, fn); err != nil {
			errs <- err
		}
		w.Close()
		done <- struct{}{}
	}
	go run(links, m.onLink)
	go run(tables, m.onTable)
	return func() { cancel(); <-done; <-done }, errs, nil
}

// onLink wakes for a link that went, when one is waited for, and for changes of links
// that are not ours (an uplink's MTU).
func (m *Manager) onLink(msg *syscall.NetlinkMessage) {
	if msg == nil {
		m.kick()
		return
	}
	if len(msg.Data) < unix.SizeofIfInfomsg {
		return
	}
	attrs := msg.Data[unix.SizeofIfInfomsg:]
	g, _ := linuxns.Attribute(attrs, unix.IFLA_GROUP)
	if len(g) != 4 || binary.NativeEndian.Uint32(g) != LinkGroup {
		m.kick()
		return
	}
	index := int(int32(binary.NativeEndian.Uint32(msg.Data[4:])))
	isUp := binary.NativeEndian.Uint32(msg.Data[8:])&unix.IFF_UP != 0
	alias, _ := linuxns.Attribute(attrs, unix.IFLA_IFALIAS)
	id, _ := parseAlias(strings.TrimSuffix(string(alias), "\x00"))
	m.mu.Lock()
	defer m.mu.Unlock()
	switch rec := m.pods[id.uid]; {
	case msg.Header.Type == unix.RTM_DELLINK && len(m.dying) > 0:
		signal(m.reaping)
	case msg.Header.Type == unix.RTM_NEWLINK && rec != nil && rec.link == index && !isUp:
		signal(m.broken)
	}
}

// onTable wakes when somebody else changed our table.
func (m *Manager) onTable(msg *syscall.NetlinkMessage) {
	if msg == nil || !m.rules.own(msg.Header.Pid) && linuxns.TableOf(msg) == tableName {
		m.kick()
	}
}

// contains reports whether any prefix holds ip.
func contains(prefixes []netip.Prefix, ip netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// notFound says that err means "no such link".
func notFound(err error) bool {
	var nf netlink.LinkNotFoundError
	return errors.As(err, &nf) || errors.Is(err, unix.ENODEV)
}

// linkByName is nil without an error when there is none.
func linkByName(h *netlink.Handle, name string) (netlink.Link, error) {
	l, err := h.LinkByName(name)
	if err != nil && notFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up link %s: %w", name, err)
	}
	return l, nil
}
