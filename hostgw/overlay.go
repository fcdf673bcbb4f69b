package hostgw

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// Encapsulation says which nodes are reached through VXLAN.
type Encapsulation string

// Modes of encapsulation; the empty one is EncapNever.
const (
	EncapNever       Encapsulation = "Never"       // nodes behind a router are unreachable
	EncapCrossSubnet Encapsulation = "CrossSubnet" // only nodes behind a router
	EncapAlways      Encapsulation = "Always"
)

// Overhead is what pods' links should leave of the uplink's MTU; bytes.
func (e Encapsulation) Overhead() int {
	if e == EncapAlways || e == EncapCrossSubnet {
		return overhead6
	}
	return 0
}

// The overlay is one VXLAN device without peers of its own: each route carries its outer
// destination (a lightweight tunnel), so that routes stay the only state. What the inner
// Ethernet header needs, the other node's MAC, follows from its name.
const (
	overlayLink  = "vkm-vxlan"
	overlayAlias = "vk-metal/1 vxlan"
	overlayVNI   = 118
	// DefaultVXLANPort is IANA's.
	DefaultVXLANPort = 4789
	// Overhead of VXLAN in bytes over IPv4 and IPv6.
	overhead4, overhead6 = 50, 70
)

// overlay is where encapsulated routes lead.
type overlay struct {
	mode Encapsulation
	port int
	mac  net.HardwareAddr
}

// vtepMAC is a node's inner MAC: locally administered, from its name.
func vtepMAC(node string) net.HardwareAddr {
	sum := sha256.Sum256([]byte("vtep " + node))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// innerGateway is the next hop on the overlay device for an outer destination. It stands
// for the outer one when routes are compared: IPv4 pods use the same address, IPv6 pods a
// link-local one made from it (the kernel refuses a gateway that another link leads to).
func innerGateway(cidr netip.Prefix, outer netip.Addr) (netip.Addr, bool) {
	if cidr.Addr().Is4() {
		return outer, outer.Is4()
	}
	sum := sha256.Sum256(outer.AsSlice())
	gw := [16]byte{0xfe, 0x80}
	copy(gw[8:], sum[:8])
	return netip.AddrFrom16(gw), true
}

// ipEncap is the lightweight tunnel of a route: VXLAN to an outer destination.
type ipEncap struct{ dst netip.Addr }

var _ netlink.Encap = ipEncap{}

// Attributes of include/uapi/linux/lwtunnel.h; the same numbers for IPv4 and IPv6.
const (
	lwtunnelIPID    = 1
	lwtunnelIPDst   = 2
	lwtunnelIPFlags = 6
	tunnelCsum      = 1 // IPv6 receivers drop UDP without a checksum
)

func (e ipEncap) Type() int {
	if e.dst.Is4() {
		return nl.LWTUNNEL_ENCAP_IP
	}
	return nl.LWTUNNEL_ENCAP_IP6
}

func (e ipEncap) Encode() ([]byte, error) {
	b := nl.NewRtAttr(lwtunnelIPID, binary.BigEndian.AppendUint64(nil, overlayVNI)).Serialize()
	b = append(b, nl.NewRtAttr(lwtunnelIPDst, e.dst.AsSlice()).Serialize()...)
	if e.dst.Is6() {
		b = append(b, nl.NewRtAttr(lwtunnelIPFlags, binary.BigEndian.AppendUint16(nil, tunnelCsum)).Serialize()...)
	}
	return b, nil
}

func (e ipEncap) Decode([]byte) error { return errors.New("not used") }
func (e ipEncap) String() string      { return "vxlan to " + e.dst.String() }
func (e ipEncap) Equal(o netlink.Encap) bool {
	other, ok := o.(ipEncap)
	return ok && other == e
}

// overlayDevice is nil if there is none.
func (k kernel) overlayDevice() (*netlink.Vxlan, error) {
	l, err := k.h.LinkByName(overlayLink)
	if nf := (netlink.LinkNotFoundError{}); errors.As(err, &nf) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up link %s: %w", overlayLink, err)
	}
	v, ok := l.(*netlink.Vxlan)
	if !ok || v.Alias != overlayAlias && v.Alias != "" {
		return nil, fmt.Errorf("link %s exists and is not ours: %w", overlayLink, unix.EEXIST)
	}
	return v, nil
}

// ensureOverlay makes the device, or makes it anew when it differs, and brings it up.
func (k kernel) ensureOverlay(ns *linuxns.NS, o overlay, mtu int) (int, error) {
	have, err := k.overlayDevice()
	if err != nil {
		return 0, err
	}
	if have != nil && (have.Port != o.port || !have.FlowBased || have.HardwareAddr.String() != o.mac.String()) {
		if err := k.h.LinkDel(have); err != nil {
			return 0, fmt.Errorf("remove link %s: %w", overlayLink, err)
		}
		have = nil
	}
	if have == nil {
		if have, err = k.addOverlay(o, mtu); err != nil {
			return 0, err
		}
	}
	if have.Alias != overlayAlias {
		if err := k.h.LinkSetAlias(have, overlayAlias); err != nil {
			return 0, fmt.Errorf("set alias of link %s: %w", overlayLink, err)
		}
	}
	if have.MTU != mtu {
		if err := k.h.LinkSetMTU(have, mtu); err != nil {
			return 0, fmt.Errorf("set MTU of link %s to %d: %w", overlayLink, mtu, err)
		}
	}
	if have.Flags&net.FlagUp == 0 {
		if err := k.h.LinkSetUp(have); err != nil {
			return 0, fmt.Errorf("bring up link %s: %w", overlayLink, err)
		}
	}
	return have.Index, strictSource(ns)
}

func (k kernel) addOverlay(o overlay, mtu int) (*netlink.Vxlan, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = overlayLink, mtu, o.mac
	err := k.h.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, FlowBased: true, Port: o.port})
	if err != nil {
		return nil, fmt.Errorf("add link %s on UDP port %d (another program's VXLAN may hold it): %w", overlayLink, o.port, err)
	}
	l, err := k.overlayDevice()
	if err == nil && l == nil {
		err = fmt.Errorf("link %s is gone right after it was made", overlayLink)
	}
	return l, err
}

// strictSource lets through the device only what is answered through it: a node behind
// the overlay cannot send in the name of pods that are elsewhere (IPv4).
func strictSource(ns *linuxns.NS) error {
	return ns.Do(func() error {
		_, err := linuxns.SetSysctl(linuxns.Sysctl{Key: "net/ipv4/conf/" + overlayLink + "/rp_filter", Value: "1"})
		return err
	})
}

// removeOverlay deletes the device if it is ours.
func (k kernel) removeOverlay() error {
	l, err := k.overlayDevice()
	if errors.Is(err, unix.EEXIST) || l == nil && err == nil {
		return nil // nothing of ours
	}
	if err != nil {
		return err
	}
	if err := k.h.LinkDel(l); err != nil {
		return fmt.Errorf("remove link %s: %w", overlayLink, err)
	}
	return nil
}

// syncNeighbours makes the device's permanent entries those that the routes need.
func (k kernel) syncNeighbours(link int, want map[netip.Addr]net.HardwareAddr) error {
	var errs []error
	want = maps.Clone(want)
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		have, err := k.h.NeighList(link, fam)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("list neighbours on %s: %w", overlayLink, err)
		}
		for _, n := range have {
			ip, _ := netip.AddrFromSlice(n.IP)
			ip = ip.Unmap()
			mac, ok := want[ip]
			switch {
			case ok && n.State == netlink.NUD_PERMANENT && mac.String() == n.HardwareAddr.String():
				delete(want, ip)
			case !ok && n.State == netlink.NUD_PERMANENT:
				errs = append(errs, k.h.NeighDel(&n))
			}
		}
	}
	for ip, mac := range want {
		fam := netlink.FAMILY_V6
		if ip.Is4() {
			fam = netlink.FAMILY_V4
		}
		errs = append(errs, k.h.NeighSet(&netlink.Neigh{LinkIndex: link, Family: fam, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac}))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("set neighbours on %s: %w", overlayLink, err)
	}
	return nil
}

// overlayMTU is what fits into the smallest of the links that carry the overlay.
func (k kernel) overlayMTU(p *plan) (int, error) {
	mtu := 0
	for link, over := range p.underlay {
		l, err := k.h.LinkByIndex(link)
		if err != nil {
			return 0, fmt.Errorf("look up link %d of the overlay: %w", link, err)
		}
		if m := l.Attrs().MTU - over; mtu == 0 || m < mtu {
			mtu = m
		}
	}
	return mtu, nil
}
