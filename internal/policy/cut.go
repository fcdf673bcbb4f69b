package policy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// cutEvery bounds how often the connection tracking is read: it may be big, and in a busy
// cluster every pod that goes away takes a permission with it.
const cutEvery = time.Second

// cutFlows ends flows that are not allowed any more, until ctx ends.
func (c *Controller) cutFlows(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.stale:
		}
		n, err := c.cut()
		c.stats.cut.Add(float64(n))
		if err != nil {
			c.log.Warn("some flows may go on that are not allowed any more", "err", err)
		} else if n > 0 {
			c.log.Debug("ended flows that are not allowed any more", "count", n)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(cutEvery):
		}
	}
}

func (c *Controller) cut() (uint, error) {
	h, err := c.ns.Netlink(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	f := forbidden{c: c, node: map[netip.Addr]bool{}}
	addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return 0, fmt.Errorf("list the node's addresses: %w", err)
	}
	for _, a := range addrs {
		f.node[address(a.IP)] = true
	}
	var count uint
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		n, familyErr := h.ConntrackDeleteFilters(netlink.ConntrackTable, family, f)
		count += n
		err = errors.Join(err, familyErr)
	}
	if err != nil {
		return count, fmt.Errorf("end flows by the connection tracking: %w", err)
	}
	return count, nil
}

// forbidden matches the entries of the connection tracking that policies do not allow.
type forbidden struct {
	c    *Controller
	node map[netip.Addr]bool
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter. The destination is where the
// answers come from: the pod itself, not the Service's address.
func (f forbidden) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	p := packet{
		from: address(flow.Forward.SrcIP), to: address(flow.Reverse.SrcIP),
		protocol: Protocol(flow.Forward.Protocol), port: flow.Reverse.SrcPort,
	}
	if f.node[p.from] {
		return false
	}
	f.c.state.RLock()
	defer f.c.state.RUnlock()
	return !f.c.engine.content.allows(p)
}

func address(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
