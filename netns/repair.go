package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// repair puts back the host side of pods that lost their routes: somebody took the link
// down (with which the kernel drops routes and neighbours) or deleted a route.
func (m *Manager) repair(ctx context.Context) {
	have, err := m.podRoutes()
	if err != nil {
		m.log.Warn("cannot check the routes to pods", "error", err)
		return
	}
	var lost []string
	m.mu.Lock()
	for uid, rec := range m.pods {
		for _, ip := range rec.ips {
			if rec.link != 0 && have[ip] != rec.link {
				lost = append(lost, uid)
				break
			}
		}
	}
	m.mu.Unlock()
	for _, uid := range lost {
		err := m.repairPod(ctx, uid)
		m.log.Warn("the route to a pod was lost and has been put back", "pod", uid, "error", err)
	}
}

// podRoutes are the links that our host routes lead to.
func (m *Manager) podRoutes() (map[netip.Addr]int, error) {
	for try := 0; ; try++ {
		list, err := m.nl.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: RouteProtocol, Table: unix.RT_TABLE_MAIN},
			netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		if errors.Is(err, netlink.ErrDumpInterrupted) && try < 10 {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		have := map[netip.Addr]int{}
		for _, r := range list {
			if r.Dst != nil {
				ip, _ := netip.AddrFromSlice(r.Dst.IP)
				have[ip.Unmap()] = r.LinkIndex
			}
		}
		return have, nil
	}
}

// repairPod repeats the end of Setup, unless a Teardown came first.
func (m *Manager) repairPod(ctx context.Context, uid string) error {
	unlock, err := m.locks.LockContext(ctx, uid)
	if err != nil {
		return err
	}
	defer unlock()
	s := &setup{m: m, pod: PodNetwork{PodUID: uid}, name: linkName(uid)}
	m.mu.Lock()
	s.rec = m.pods[uid]
	m.mu.Unlock()
	if s.rec == nil {
		return nil
	}
	if s.link, err = m.nl.LinkByIndex(s.rec.link); err != nil {
		return fmt.Errorf("look up link %s: %w", s.name, err)
	}
	if err := s.hostUp(); err != nil {
		return err
	}
	return s.hostSide()
}
