package dnscache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/nft"
)

const (
	tableName = "vk-metal-dns"
	// mark is the bit on packets that go to the cache: a rule makes them local.
	mark = 1 << 20
	// RouteProtocol marks our route and our routing rules ("t").
	RouteProtocol = 116
	// routeTable and rulePriority are the number that our links have as their group.
	routeTable, rulePriority = 30315, 30315
)

// Our hook comes after the pods' anti-spoofing (raw, -300) and before the connection
// tracking: what the cache answers is not tracked.
const priority = -299

// door is what leads pods' queries to the cache's sockets: an nftables table, one routing
// rule and one route for each IP version.
type door struct {
	ns      *linuxns.NS
	servers []netip.Addr
	group   uint32

	mu     sync.Mutex
	conn   *nft.Conn
	direct []netip.Addr
	open   bool // the table was put in place: queries may come here
}

func newDoor(ns *linuxns.NS, servers []netip.Addr, group uint32) *door {
	return &door{ns: ns, conn: nft.New(ns.FD(), tableName, nft.SmallBuffer), servers: servers, group: group}
}

// keep puts the table in place and back until ctx ends. It stays then: without a socket
// its rules do not match.
func (d *door) keep(ctx context.Context, log *slog.Logger) error {
	w, err := d.ns.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return err
	}
	defer w.Close()
	ctx, cancel := context.WithCancel(ctx)
	touched, failed := make(chan struct{}, 1), make(chan error, 1)
	go func() { failed <- w.Run(ctx, func(msg *syscall.NetlinkMessage) { d.event(msg, touched) }) }()
	defer func() {
		cancel()
		d.close()
	}()
	for {
		var again <-chan time.Time
		if err := d.install(); err != nil {
			log.Error("the DNS cache gets no queries", "error", err)
			again = time.After(5 * time.Second)
		}
		select {
		case err := <-failed:
			return err
		case <-again:
		case <-touched:
			log.Warn("somebody changed the rules of the DNS cache; putting them back", "table", tableName)
		}
	}
}

func (d *door) event(msg *syscall.NetlinkMessage, touched chan<- struct{}) {
	d.mu.Lock()
	own := msg != nil && (linuxns.TableOf(msg) != tableName || d.conn.Own(msg.Header.Pid))
	d.mu.Unlock()
	if own {
		return
	}
	select {
	case touched <- struct{}{}:
	default:
	}
}

func (d *door) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn.Drop()
	d.open = false
}

func (d *door) setDirect(pods []netip.Addr) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if slices.Equal(d.direct, pods) {
		return nil
	}
	d.direct = slices.Clone(pods)
	if !d.open {
		return nil
	}
	return d.putTable()
}

func (d *door) install() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := putRoutes(d.ns, d.servers); err != nil {
		return err
	}
	if err := d.putTable(); err != nil {
		return err
	}
	d.open = true
	return nil
}

// putTable puts the whole table in place in one transaction: it is a handful of rules.
func (d *door) putTable() error {
	c, err := d.conn.Open()
	if err != nil {
		return err
	}
	if err := d.describe(c); err != nil {
		d.conn.Drop() // what is pending must not go with the next transaction
		return err
	}
	if err := d.conn.Commit(); err != nil {
		return fmt.Errorf("let queries in (is nft_tproxy there?): %w", err)
	}
	return nil
}

func (d *door) describe(c *nftables.Conn) error {
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	c.AddTable(t) // so that there is one to delete
	c.DelTable(t)
	c.AddTable(t)
	prio := nftables.ChainPriority(priority)
	pre := c.AddChain(&nftables.Chain{Table: t, Name: "prerouting", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: &prio})
	out := c.AddChain(&nftables.Chain{Table: t, Name: "output", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: &prio})
	sets := map[bool]*nftables.Set{}
	for _, ipv6 := range []bool{false, true} {
		s := &nftables.Set{Table: t, Name: map[bool]string{false: "direct-ip", true: "direct-ip6"}[ipv6], KeyType: nftables.TypeIPAddr}
		if ipv6 {
			s.KeyType = nftables.TypeIP6Addr
		}
		var elements []nftables.SetElement
		for _, a := range d.direct {
			if a.Is6() == ipv6 {
				elements = append(elements, nftables.SetElement{Key: a.AsSlice()})
			}
		}
		if err := nft.AddSet(c, s, elements...); err != nil {
			return err
		}
		sets[ipv6] = s
	}
	for _, server := range d.servers {
		for _, protocol := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			c.AddRule(&nftables.Rule{Table: t, Chain: pre, Exprs: d.lead(server, protocol, sets[server.Is6()].Name)})
			c.AddRule(&nftables.Rule{Table: t, Chain: out, Exprs: untracked(server, protocol)})
		}
	}
	return nil
}

// Registers: reg is 16 bytes wide, reg2 does not overlay it.
const (
	reg  = unix.NFT_REG_1
	reg2 = unix.NFT_REG_2
)

var port53 = binaryutil.BigEndian.PutUint16(53)

// lead hands a pod's query to the socket, if there is one: else tproxy ends the rule.
func (d *door) lead(server netip.Addr, protocol byte, direct string) []expr.Any {
	v := versionOf(server)
	e := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFGROUP, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.NativeEndian.PutUint32(d.group)},
	}
	e = append(e, v.match(v.daddr, server, protocol, 2)...)
	return append(e,
		v.load(v.saddr),
		&expr.Lookup{SourceRegister: reg, SetName: direct, Invert: true},
		&expr.Immediate{Register: reg, Data: server.AsSlice()},
		&expr.Immediate{Register: reg2, Data: port53},
		&expr.TProxy{Family: v.proto, TableFamily: unix.NFPROTO_INET, RegAddr: reg, RegPort: reg2},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(^uint32(mark)), Xor: binaryutil.NativeEndian.PutUint32(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg},
		&expr.Notrack{},
		&expr.Verdict{Kind: expr.VerdictAccept},
	)
}

// untracked keeps the cache's replies out of the connection tracking, too.
func untracked(server netip.Addr, protocol byte) []expr.Any {
	v := versionOf(server)
	return append(v.match(v.saddr, server, protocol, 0), &expr.Notrack{})
}

// version is what differs between the IP versions.
type version struct {
	proto                byte
	saddr, daddr, length uint32
}

func versionOf(a netip.Addr) version {
	if a.Is6() {
		return version{unix.NFPROTO_IPV6, 8, 24, 16}
	}
	return version{unix.NFPROTO_IPV4, 12, 16, 4}
}

func (v version) load(offset uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: v.length}
}

// match is an address at an offset, a protocol, and port 53 at the offset in its header.
func (v version) match(offset uint32, a netip.Addr, protocol byte, port uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{v.proto}},
		v.load(offset),
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: a.AsSlice()},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{protocol}},
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: port, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: port53},
	}
}

// putRoutes makes marked packets local.
func putRoutes(ns *linuxns.NS, servers []netip.Addr) error {
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("look up the loopback interface: %w", err)
	}
	for _, ipv6 := range []bool{false, true} {
		if !slices.ContainsFunc(servers, func(a netip.Addr) bool { return a.Is6() == ipv6 }) {
			continue
		}
		if err := h.RouteReplace(ourRoute(lo.Attrs().Index, ipv6)); err != nil {
			return fmt.Errorf("add the route of the DNS cache: %w", err)
		}
		if err := h.RuleAdd(ourRule(ipv6)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add the routing rule of the DNS cache: %w", err)
		}
	}
	return nil
}

// Remove takes away what a Cache left in the namespace (empty: the process's own). Without
// that it does nothing.
func Remove(hostNetNS string) error {
	ns, err := linuxns.Open(hostNetNS)
	if err != nil {
		return err
	}
	defer ns.Close()
	c, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		return fmt.Errorf("open nftables socket: %w", err)
	}
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: tableName})
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove nftables table %s: %w", tableName, err)
	}
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	for _, ipv6 := range []bool{false, true} {
		err := errors.Join(gone(h.RuleDel(ourRule(ipv6))), gone(h.RouteDel(ourRoute(0, ipv6))))
		if err != nil {
			return fmt.Errorf("remove the route of the DNS cache: %w", err)
		}
	}
	return nil
}

func gone(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil
	}
	return err
}
