package wireguard

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/vk-metal/vk-metal/hostgw"
)

// probe is the keepalive of a peer that has not answered yet: it makes the kernel try a
// handshake at once and then every five seconds, as often as WireGuard ever tries.
const probe = 5 * time.Second

// peer is one entry of a device, the fields that we own and nothing else.
type peer struct {
	endpoint  netip.AddrPort
	allowed   []netip.Prefix // sorted
	keepalive time.Duration
	// answered: there was a handshake. The kernel's word, never wanted.
	answered bool
}

func (p peer) same(o peer) bool {
	return p.endpoint == o.endpoint && p.keepalive == o.keepalive && slices.Equal(p.allowed, o.allowed)
}

type peers map[wgtypes.Key]peer

// plan is what the devices should have.
type plan struct {
	slots [slots]peers
	keys  map[string]announcement // of the nodes with a tunnel
	errs  map[string]error        // why others have none
}

// inputs of a plan.
type inputs struct {
	hostgw.TunnelInputs
	self      announcement
	holders   map[wgtypes.Key]string // who had a key in the plan before
	keepalive time.Duration
}

// makePlan decides; it has no effects but lookups.
func makePlan(in inputs) plan {
	p := plan{slots: [slots]peers{{}, {}}, keys: map[string]announcement{}, errs: map[string]error{}}
	announced := map[string]announcement{}
	for _, node := range in.Peers {
		keys, err := parseAnnouncement(node.Keys)
		if err != nil {
			p.errs[node.Name] = err
			continue
		}
		announced[node.Name] = keys
	}
	owners := ownersOf(announced, in.holders, in.self)
	for _, node := range in.Peers {
		keys, ok := announced[node.Name]
		if !ok {
			continue
		}
		if err := p.add(node, keys, owners, in); err != nil {
			p.errs[node.Name] = err
		}
	}
	return p
}

// ownersOf says whose a key is: a node that announces another one's key does not get it.
func ownersOf(announced map[string]announcement, holders map[wgtypes.Key]string, self announcement) map[wgtypes.Key]string {
	owners := map[wgtypes.Key]string{}
	for _, name := range slices.Sorted(maps.Keys(announced)) {
		for _, e := range announced[name] {
			if now, taken := owners[e.key]; !taken || holders[e.key] == name && now != name {
				owners[e.key] = name
			}
		}
	}
	for _, e := range self {
		owners[e.key] = "" // ours
	}
	return owners
}

func (p plan) add(node hostgw.Peer, keys announcement, owners map[wgtypes.Key]string, in inputs) error {
	for _, e := range keys {
		if owners[e.key] != node.Name {
			return fmt.Errorf("the annotation %s has the key of another node", Annotation)
		}
	}
	addr, err := reach(node.Addrs, in)
	if err != nil {
		return err
	}
	allowed := slices.SortedFunc(slices.Values(node.PodCIDRs), comparePrefix)
	for i, e := range keys {
		p.slots[i][e.key] = peer{endpoint: netip.AddrPortFrom(addr, e.port), allowed: allowed, keepalive: in.keepalive}
	}
	p.keys[node.Name] = keys
	return nil
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// reach takes the first of a node's addresses that there is a way to, or the first: a way that
// is gone for a moment must not cost the session.
func reach(addrs []netip.Addr, in inputs) (first netip.Addr, err error) {
	for _, a := range addrs {
		_, local, err := in.Lookup(a)
		switch {
		case local:
			return a, fmt.Errorf("node address %s is this host's own", a)
		case err == nil:
			return a, nil
		case !first.IsValid():
			first = a
		}
	}
	if !first.IsValid() {
		return first, errors.New("the node has no address")
	}
	return first, nil
}

// diff is what takes a device from have to want; peers that do not differ are not in it.
func diff(want, have peers) []wgtypes.PeerConfig {
	var out []wgtypes.PeerConfig
	for key := range have {
		if _, ok := want[key]; !ok {
			out = append(out, wgtypes.PeerConfig{PublicKey: key, Remove: true})
		}
	}
	for key, w := range want {
		h, there := have[key]
		if !h.answered {
			w.keepalive = probe
		}
		if !there || !w.same(h) {
			c := w.config(key)
			c.UpdateOnly = there
			if there && w.endpoint == h.endpoint {
				c.Endpoint = nil
			}
			out = append(out, c)
		}
	}
	slices.SortStableFunc(out, func(a, b wgtypes.PeerConfig) int {
		if a.Remove != b.Remove {
			if a.Remove {
				return -1
			}
			return 1
		}
		return strings.Compare(string(a.PublicKey[:]), string(b.PublicKey[:]))
	})
	return out
}

func (p peer) config(key wgtypes.Key) wgtypes.PeerConfig {
	c := wgtypes.PeerConfig{
		PublicKey: key, Endpoint: net.UDPAddrFromAddrPort(p.endpoint), PersistentKeepaliveInterval: &p.keepalive, ReplaceAllowedIPs: true,
	}
	for _, a := range p.allowed {
		c.AllowedIPs = append(c.AllowedIPs, net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())})
	}
	return c
}

// after is what a device has when a configuration was applied to what it had.
func after(have peers, applied []wgtypes.PeerConfig, want peers) peers {
	now := maps.Clone(have)
	for _, c := range applied {
		if c.Remove {
			delete(now, c.PublicKey)
			continue
		}
		p := want[c.PublicKey]
		p.keepalive, p.answered = *c.PersistentKeepaliveInterval, have[c.PublicKey].answered
		now[c.PublicKey] = p
	}
	return now
}

// fromDevice reads what the kernel has.
func fromDevice(d *wgtypes.Device) peers {
	out := peers{}
	for i := range d.Peers {
		k := &d.Peers[i]
		p := peer{keepalive: k.PersistentKeepaliveInterval, answered: !k.LastHandshakeTime.IsZero() && k.LastHandshakeTime.Unix() > 0}
		if k.Endpoint != nil {
			p.endpoint = k.Endpoint.AddrPort()
			p.endpoint = netip.AddrPortFrom(p.endpoint.Addr().Unmap(), p.endpoint.Port())
		}
		for _, a := range k.AllowedIPs {
			ip, _ := netip.AddrFromSlice(a.IP)
			bits, _ := a.Mask.Size()
			p.allowed = append(p.allowed, netip.PrefixFrom(ip.Unmap(), bits))
		}
		slices.SortFunc(p.allowed, comparePrefix)
		out[k.PublicKey] = p
	}
	return out
}

// choose is the slot to send to a node by: the active one, or the other one while only that is
// known to work; none if neither is.
func choose(active int, keys announcement, have [slots]peers) (slot int, works bool) {
	for _, s := range []int{active, 1 - active} {
		if have[s][keys[s].key].answered {
			return s, true
		}
	}
	return active, false
}
