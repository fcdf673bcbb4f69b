package hostgw

import (
	"net/netip"

	"github.com/vishvananda/netlink"
)

// CheckCIDR refuses what can be no range of pods or Services: default, loopback, multicast,
// link-local and malformed ones.
func CheckCIDR(p netip.Prefix) error { return checkCIDR(p) }

// Subnets are the prefixes of the host's own addresses, link-local ones left out.
func Subnets(h *netlink.Handle) ([]netip.Prefix, error) { return kernel{h}.subnets() }
