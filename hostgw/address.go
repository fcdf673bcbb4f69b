package hostgw

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nodeAddress is the podCIDR's address that the host itself takes on the overlay: a
// packet from the host to a pod behind it must be answered through it. The pod network
// gives the first host address to no pod.
func nodeAddress(cidr netip.Prefix) netip.Addr { return cidr.Addr().Next() }

// SyncAddresses gives a link of ours that leads to other nodes' pods the node's address in
// each of its podCIDRs, and no other; name is for errors.
func SyncAddresses(h *netlink.Handle, link int, name string, self []netip.Prefix) error {
	want := map[netip.Addr]bool{}
	for _, cidr := range self {
		want[nodeAddress(cidr)] = true
	}
	dev := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: link}}
	have, err := h.AddrList(dev, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", name, err)
	}
	var errs []error
	for _, a := range have {
		ip, _ := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		if !want[ip] && !ip.IsLinkLocalUnicast() {
			errs = append(errs, h.AddrDel(dev, &a))
		}
		delete(want, ip)
	}
	for ip := range want {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}, Flags: unix.IFA_F_NODAD}
		errs = append(errs, h.AddrAdd(dev, a))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("set addresses of %s: %w", name, err)
	}
	return nil
}
