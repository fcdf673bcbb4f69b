package lan

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/ndp"
	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// found is a link of the node that can announce. Of an open link only running and subnets
// change.
type found struct {
	index   int
	name    string
	mac     string
	running bool // it has a carrier
	subnets []netip.Prefix
}

// holds says whether the address is in one of the link's subnets.
func (f *found) holds(a netip.Addr) bool {
	return slices.ContainsFunc(f.subnets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// findLinks lists the Ethernet links that are up and have a subnet; names narrows them
// unless it is empty. own are all addresses of the host.
func findLinks(h *netlink.Handle, names []string) (links map[int]*found, own map[netip.Addr]bool, err error) {
	addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
	for try := 0; errors.Is(err, netlink.ErrDumpInterrupted) && try < 10; try++ {
		addrs, err = h.AddrList(nil, netlink.FAMILY_ALL)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list addresses: %w", err)
	}
	links, own = map[int]*found{}, map[netip.Addr]bool{}
	for i := range addrs {
		p, ok := netipPrefix(addrs[i].IPNet)
		if !ok {
			continue
		}
		own[p.Addr()] = true
		if p.IsSingleIP() || !p.Addr().IsGlobalUnicast() {
			continue
		}
		f, seen := links[addrs[i].LinkIndex]
		if !seen {
			f = look(h, addrs[i].LinkIndex, names)
			links[addrs[i].LinkIndex] = f
		}
		if f != nil && !slices.Contains(f.subnets, p.Masked()) {
			f.subnets = append(f.subnets, p.Masked())
		}
	}
	maps.DeleteFunc(links, func(_ int, f *found) bool { return f == nil })
	return links, own, nil
}

// look is nil for a link that cannot announce, or is gone again.
func look(h *netlink.Handle, index int, names []string) *found {
	l, err := h.LinkByIndex(index)
	if err != nil {
		return nil
	}
	a := l.Attrs()
	if a.EncapType != "ether" || len(a.HardwareAddr) != 6 || a.RawFlags&unix.IFF_UP == 0 || a.RawFlags&unix.IFF_NOARP != 0 ||
		len(names) > 0 && !slices.Contains(names, a.Name) {
		return nil
	}
	return &found{index: index, name: a.Name, mac: a.HardwareAddr.String(), running: a.RawFlags&unix.IFF_RUNNING != 0}
}

func netipPrefix(n *net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits), ok
}

// link answers for addresses on one link until close.
type link struct {
	found
	hw     net.HardwareAddr
	arp    *packet.Conn
	nd     *packet.Conn
	groups int // a socket that is a member of the addresses' solicited-node groups
	counts *counters
	broken func()      // called when a socket failed, say because the link went down
	dead   atomic.Bool // then
	done   sync.WaitGroup

	mu     sync.Mutex
	mine   map[netip.Addr]bool
	heard  map[netip.Addr]time.Time // of watched addresses: when somebody else answered
	joined map[netip.Addr]int       // groups, with how many of mine
}

// openLink begins to listen.
func openLink(ns *linuxns.NS, f *found, counts *counters, broken func()) (*link, error) {
	l := &link{
		found: *f, groups: -1, counts: counts, broken: broken,
		mine: map[netip.Addr]bool{}, heard: map[netip.Addr]time.Time{}, joined: map[netip.Addr]int{},
	}
	var err error
	if l.hw, err = net.ParseMAC(f.mac); err != nil {
		return nil, fmt.Errorf("address of link %s: %w", f.name, err)
	}
	err = ns.Do(func() (err error) {
		ifi := &net.Interface{Index: f.index, Name: f.name}
		if l.arp, err = packet.Listen(ifi, packet.Datagram, unix.ETH_P_ARP, nil); err != nil {
			return err
		}
		if l.nd, err = packet.Listen(ifi, packet.Datagram, unix.ETH_P_IPV6, &packet.Config{Filter: neighbourFilter}); err != nil {
			return err
		}
		l.groups, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		l.close()
		return nil, fmt.Errorf("listen on link %s: %w", f.name, err)
	}
	l.done.Go(func() { l.listen(l.arp, l.onARP) })
	l.done.Go(func() { l.listen(l.nd, l.onNeighbour) })
	return l, nil
}

func (l *link) close() {
	for _, c := range []*packet.Conn{l.arp, l.nd} {
		if c != nil {
			_ = c.Close()
		}
	}
	if l.groups >= 0 {
		_ = unix.Close(l.groups)
	}
	l.done.Wait()
}

// listen hands packets on until the socket fails or is closed.
func (l *link) listen(c *packet.Conn, handle func(b []byte, from net.HardwareAddr)) {
	b := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			l.dead.Store(true)
			l.broken()
			return
		}
		if a, ok := from.(*packet.Addr); ok {
			handle(b[:n], a.HardwareAddr)
		}
	}
}

// set says which addresses are ours and which are watched, and returns those that became
// ours and what could not be done.
func (l *link) set(mine, watched map[netip.Addr]bool) (fresh []netip.Addr, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for a := range mine {
		if !l.mine[a] {
			fresh = append(fresh, a)
			err = errors.Join(err, l.member(a, 1))
		}
	}
	for a := range l.mine {
		if !mine[a] {
			err = errors.Join(err, l.member(a, -1))
		}
	}
	l.mine = mine
	maps.DeleteFunc(l.heard, func(a netip.Addr, _ time.Time) bool { return !watched[a] })
	for a := range watched {
		if _, known := l.heard[a]; !known {
			l.heard[a] = time.Now()
		}
	}
	return fresh, err
}

// member enters or leaves the group that solicitations for the address are sent to, so
// that switches and the network card let them through.
func (l *link) member(a netip.Addr, by int) error {
	if a.Is4() {
		return nil
	}
	group, err := ndp.SolicitedNodeMulticast(a)
	if err != nil {
		return fmt.Errorf("announce %s: %w", a, err)
	}
	before := l.joined[group]
	l.joined[group] += by
	option := unix.IPV6_JOIN_GROUP
	switch {
	case by > 0 && before == 0:
	case by < 0 && before == 1:
		option = unix.IPV6_LEAVE_GROUP
		delete(l.joined, group)
	default:
		return nil
	}
	if err := unix.SetsockoptIPv6Mreq(l.groups, unix.IPPROTO_IPV6, option, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(l.index)}); err != nil {
		return fmt.Errorf("listen for %s on link %s: %w", a, l.name, err)
	}
	return nil
}

// answers says whether the address is ours; what somebody else says of one is noted.
func (l *link) answers(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mine[a]
}

func (l *link) note(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, watched := l.heard[a]; watched {
		l.heard[a] = time.Now()
	}
}

// silent is how long nobody has answered for a watched address.
func (l *link) silent(a netip.Addr) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Since(l.heard[a])
}

// forgive begins the watch anew: with our own link down nobody can be heard.
func (l *link) forgive() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for a := range l.heard {
		l.heard[a] = time.Now()
	}
}

func (l *link) onARP(b []byte, from net.HardwareAddr) {
	p, ok := parseARP(b)
	if !ok {
		return
	}
	if p.senderMAC.String() != l.mac {
		l.note(p.sender)
	}
	if p.op != arpRequest || !l.answers(p.target) {
		return
	}
	reply := arp{op: arpReply, senderMAC: l.hw, sender: p.target, targetMAC: p.senderMAC, target: p.sender}
	l.counts.answered(l.name, l.send(l.arp, reply.bytes(), from))
}

func (l *link) onNeighbour(b []byte, from net.HardwareAddr) {
	n, ok := parseNeighbour(b)
	if !ok {
		return
	}
	switch m := n.message.(type) {
	case *ndp.NeighborAdvertisement:
		l.note(m.TargetAddress)
	case *ndp.NeighborSolicitation:
		if l.answers(m.TargetAddress) {
			l.counts.answered(l.name, l.advertise(m.TargetAddress, n.from, from))
		}
	}
}

// advertise tells one host, or all if it has no address yet (RFC 4861, 7.2.4).
func (l *link) advertise(a, to netip.Addr, hw net.HardwareAddr) error {
	solicited := !to.IsUnspecified() && to != allNodes
	if !solicited {
		to, hw = allNodes, allNodesMAC
	}
	n := neighbour{from: a, to: to, message: &ndp.NeighborAdvertisement{
		Solicited: solicited, Override: true, TargetAddress: a,
		Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: l.hw}},
	}}
	b, err := n.bytes()
	if err != nil {
		return err
	}
	return l.send(l.nd, b, hw)
}

// tell tells everybody on the link that the address is here: in IPv4 by a request and a
// reply, as there are hosts that hear only one of them (RFC 5227, 3).
func (l *link) tell(a netip.Addr) error {
	if a.Is6() {
		return l.advertise(a, allNodes, nil)
	}
	request := arp{op: arpRequest, senderMAC: l.hw, sender: a, targetMAC: make(net.HardwareAddr, 6), target: a}
	reply := arp{op: arpReply, senderMAC: l.hw, sender: a, targetMAC: l.hw, target: a}
	return errors.Join(l.send(l.arp, request.bytes(), broadcast), l.send(l.arp, reply.bytes(), broadcast))
}

// ask asks who has a watched address, as one who has none himself: nobody learns from it.
func (l *link) ask(a netip.Addr) error {
	if a.Is4() {
		probe := arp{op: arpRequest, senderMAC: l.hw, sender: netip.IPv4Unspecified(), targetMAC: make(net.HardwareAddr, 6), target: a}
		return l.send(l.arp, probe.bytes(), broadcast)
	}
	group, err := ndp.SolicitedNodeMulticast(a)
	if err != nil {
		return fmt.Errorf("ask for %s: %w", a, err)
	}
	n := neighbour{from: netip.IPv6Unspecified(), to: group, message: &ndp.NeighborSolicitation{TargetAddress: a}}
	b, err := n.bytes()
	if err != nil {
		return err
	}
	return l.send(l.nd, b, groupMAC(group))
}

func (l *link) send(c *packet.Conn, b []byte, to net.HardwareAddr) error {
	if _, err := c.WriteTo(b, &packet.Addr{HardwareAddr: to}); err != nil {
		return fmt.Errorf("send on link %s: %w", l.name, err)
	}
	return nil
}
