package services

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// flows are UDP frontends whose endpoints changed, with the endpoints that they have now. A
// UDP client goes on sending from one port, and the kernel goes on sending it to where the
// first packet went: to an endpoint that is gone, or, from before there was one, nowhere. An
// endpoint that ends keeps its clients for as long as it serves, as it does those of TCP.
type flows map[claimKey][]netip.AddrPort

// merge takes over what is newer.
func (f flows) merge(next flows) {
	for k, v := range next {
		f[k] = v
	}
}

// flowsOf are the frontends of one Service as they are now.
func (s *state) flowsOf(keys map[claimKey]bool) flows {
	out := flows{}
	for key := range keys {
		if key.proto != unix.IPPROTO_UDP {
			continue
		}
		out[key] = nil
		if list := s.claims[key]; len(list) > 0 {
			out[key] = list[0].port.Serving
		}
	}
	return out
}

// allFlows are all UDP frontends.
func (s *state) allFlows() flows {
	keys := map[claimKey]bool{}
	for key := range s.claims {
		keys[key] = true
	}
	return s.flowsOf(keys)
}

// staleFlows is a filter for entries of the connection tracking that lead nowhere.
type staleFlows struct {
	flows flows
	node  []netip.Addr
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	to := addrPort(flow.Forward.DstIP, flow.Forward.DstPort)
	from := addrPort(flow.Reverse.SrcIP, flow.Reverse.SrcPort)
	endpoints, ours := s.flows[claimKey{addr: to.Addr(), proto: unix.IPPROTO_UDP, port: to.Port()}]
	if !ours {
		every := netip.IPv4Unspecified()
		if to.Addr().Is6() {
			every = netip.IPv6Unspecified()
		}
		endpoints, ours = s.flows[claimKey{addr: every, proto: unix.IPPROTO_UDP, port: to.Port()}]
		// Packets that only pass through to another host's port of this number are nobody's business.
		ours = ours && (to.Addr() != from.Addr() || slices.Contains(s.node, to.Addr()))
	}
	return ours && !slices.Contains(endpoints, from)
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}

// clean ends the stale flows: the client's next packet finds its way anew.
func (s staleFlows) clean(ns *linuxns.NS) (uint, error) {
	h, err := ns.Netlink(unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	var count uint
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		n, familyErr := h.ConntrackDeleteFilters(netlink.ConntrackTable, family, s)
		count += n
		err = errors.Join(err, familyErr)
	}
	if err != nil {
		return count, fmt.Errorf("clean up UDP connection tracking: %w", err)
	}
	return count, nil
}
