package hostgw

import (
	"encoding/binary"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

func (r *Router) onEvent(msg *syscall.NetlinkMessage, heard chan<- struct{}) {
	r.mu.Lock()
	e := judge(msg, (*interests)(r))
	r.mu.Unlock()
	if e == eventNone {
		return
	}
	r.note(e)
	select {
	case heard <- struct{}{}:
	default:
	}
}

// onTable wakes when somebody else changed our table.
func (r *Router) onTable(msg *syscall.NetlinkMessage, heard chan<- struct{}) {
	if msg != nil && !r.othersTouched(msg) {
		return
	}
	r.note(eventAll)
	select {
	case heard <- struct{}{}:
	default:
	}
}

// othersTouched says whether somebody else changed a table of ours.
func (r *Router) othersTouched(msg *syscall.NetlinkMessage) bool {
	if linuxns.TableOf(msg) == filterTable {
		return !r.door.own(msg.Header.Pid)
	}
	return r.tunnels != nil && r.tunnels.Touched(linuxns.TableOf(msg), msg.Header.Pid)
}

func (r *Router) note(e event) {
	r.mu.Lock()
	r.events = max(r.events, e)
	r.mu.Unlock()
}

// interests answers for a Router whose lock is held.
type interests Router

func (i *interests) hasRoute(p netip.Prefix) bool { _, ok := i.have[p]; return ok }
func (i *interests) usesLink(index int) bool {
	return i.links[index] || i.tunnels != nil && i.tunnels.UsesLink(index)
}
func (i *interests) tunnelLink(index int) bool { return i.tunnels != nil && i.tunnels.UsesLink(index) }
func (i *interests) asked(a netip.Addr) bool   { _, ok := i.hops[a]; return ok }

// event is what one netlink message means to us.
type event int

const (
	eventNone   event = iota
	eventLookup       // ways to nodes may have changed
	eventAll          // our routes may have changed too
)

// interest says what of the kernel matters: hosts with many pods see many events.
type interest interface {
	hasRoute(dst netip.Prefix) bool // we believe that the kernel has our route
	usesLink(index int) bool        // one of our routes leaves by it
	tunnelLink(index int) bool      // it is ours, with its addresses
	asked(a netip.Addr) bool        // a node's address
}

// judge reads as little of a message as it can.
func judge(msg *syscall.NetlinkMessage, in interest) event {
	if msg == nil {
		return eventAll
	}
	d := msg.Data
	switch msg.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if len(d) >= unix.SizeofRtMsg {
			return judgeRoute(msg.Header.Type == unix.RTM_DELROUTE, d, in)
		}
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if len(d) >= unix.SizeofIfInfomsg && in.usesLink(int(int32(binary.NativeEndian.Uint32(d[4:])))) {
			return eventAll
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(d) >= unix.SizeofIfAddrmsg && in.tunnelLink(int(binary.NativeEndian.Uint32(d[4:]))) {
			return eventAll
		}
		if len(d) >= unix.SizeofIfAddrmsg && d[3] < unix.RT_SCOPE_LINK {
			return eventLookup
		}
	}
	return eventNone
}

func judgeRoute(deleted bool, d []byte, in interest) event {
	family, bits, protocol, kind := d[0], int(d[1]), d[5], d[7]
	dst := routeDst(d, family)
	switch {
	case family != unix.AF_INET && family != unix.AF_INET6:
		return eventNone
	case protocol == RouteProtocol && deleted && in.hasRoute(netip.PrefixFrom(dst, bits)):
		return eventAll
	case protocol == RouteProtocol, dst.IsLinkLocalUnicast(), dst.IsMulticast(), kind == unix.RTN_BROADCAST, kind == unix.RTN_MULTICAST, kind == unix.RTN_ANYCAST:
		return eventNone
	case bits == dst.BitLen() && !in.asked(dst):
		return eventNone // a host route, such as to a pod
	}
	return eventLookup
}

// routeDst is the destination of a route message; unspecified for a default route.
func routeDst(d []byte, family byte) netip.Addr {
	if dst, ok := linuxns.Attribute(d[unix.SizeofRtMsg:], unix.RTA_DST); ok {
		if ip, ok := netip.AddrFromSlice(dst); ok {
			return ip
		}
	}
	if family == unix.AF_INET6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}
