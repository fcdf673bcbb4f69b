package rig

import (
	"context"
	"crypto/rand"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
)

// Rack is one layer-2 network: a bridge in a namespace of its own. The router holds the
// first address of each subnet, the host the second (first rack only), then come
// endpoints and machines.
type Rack struct {
	Name      string       `json:"name"`
	NetnsPath string       `json:"netnsPath"`
	V4        netip.Prefix `json:"v4"`
	V6        netip.Prefix `json:"v6"`
	Gateway4  netip.Addr   `json:"gateway4"`
	Gateway6  netip.Addr   `json:"gateway6"`
}

// Endpoint is a network namespace with one interface, eth0, in a rack, a default
// route to the rack's router, and lo up. Forwarding is off.
type Endpoint struct {
	Name      string     `json:"name"`
	Rack      string     `json:"rack"`
	NetnsPath string     `json:"netnsPath,omitempty"`
	V4        netip.Addr `json:"v4"`
	V6        netip.Addr `json:"v6"`
}

const (
	bridgeName  = "br0"
	routerHost  = 1 // host numbers in a rack's subnets
	gatewayHost = 2
)

// AddEndpoint makes a namespace of its own for processes of the rig (a control
// plane, a registry, a client). rack "" is the first. It is idempotent by name.
func (r *Rig) AddEndpoint(_ context.Context, name, rack string) (Endpoint, error) {
	var e Endpoint
	if !processName.MatchString(name) {
		return e, fmt.Errorf("add endpoint: name %q is not valid", name)
	}
	err := r.update(func(s *state) error {
		i := slices.IndexFunc(s.Endpoints, func(o Endpoint) bool { return o.Name == name })
		if i < 0 {
			rs, v4, v6, err := s.allocate(rack)
			if err != nil {
				return err
			}
			e = Endpoint{Name: name, Rack: rs.Name, NetnsPath: netnsPath(r.id, name), V4: v4, V6: v6}
			i = len(s.Endpoints)
			s.Endpoints = append(s.Endpoints, e)
		}
		e = s.Endpoints[i]
		if _, err := os.Stat(e.NetnsPath); err == nil {
			return nil
		}
		rs, err := s.rack(e.Rack)
		if err != nil {
			return err
		}
		return attach(rs.Rack, e, portMAC(r.id, name), true)
	})
	if err != nil {
		return Endpoint{}, fmt.Errorf("add endpoint %s: %w", name, err)
	}
	return e, nil
}

// Endpoint finds an endpoint by name.
func (r *Rig) Endpoint(name string) (Endpoint, error) {
	s, err := readState(r.dir)
	if err != nil {
		return Endpoint{}, err
	}
	for _, e := range s.Endpoints {
		if e.Name == name {
			return e, nil
		}
	}
	return Endpoint{}, fmt.Errorf("find endpoint %q: %w", name, ErrNotFound)
}

// attach makes e's namespace and connects it to the rack.
func attach(rack Rack, e Endpoint, mac net.HardwareAddr, attached bool) error {
	if err := makeNetns(e.NetnsPath); err != nil {
		return err
	}
	c := cable{
		rackNetns: rack.NetnsPath, port: portName(e.Name), netns: e.NetnsPath, name: "eth0", mac: mac, attached: attached,
		addrs: []netip.Prefix{netip.PrefixFrom(e.V4, rack.V4.Bits()), netip.PrefixFrom(e.V6, rack.V6.Bits())},
	}
	err := c.lay()
	if err == nil {
		err = inNetns(e.NetnsPath, func() error {
			if err := addRoute(netip.Prefix{}, rack.Gateway4, "eth0"); err != nil {
				return err
			}
			return addRoute(netip.Prefix{}, rack.Gateway6, "eth0")
		})
	}
	if err != nil {
		_ = removeNetns(e.NetnsPath) // so that the next try starts anew
	}
	return err
}

// portName is the bridge port of a thing: its name when the kernel takes it.
func portName(name string) string {
	if len(name) < 16 {
		return name
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	return fmt.Sprintf("%.6s-%08x", name, h.Sum32())
}

// portMAC is a locally administered address that stays over reboots.
func portMAC(id, name string) net.HardwareAddr {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id + "/" + name))
	sum := h.Sum(nil)
	return net.HardwareAddr{0x02, sum[1], sum[2], sum[3], sum[4], sum[5]}
}

// buildNetwork makes racks, router and the host's link. What a former try left half
// made is removed first.
func (r *Rig) buildNetwork(s *state) error {
	if err := r.removeNetwork(); err != nil {
		return err
	}
	router := netnsPath(r.id, "router")
	if err := makeNetns(router); err != nil {
		return err
	}
	if err := inNetns(router, func() error { return setForwarding(true) }); err != nil {
		return err
	}
	for i, rs := range s.Racks {
		if err := buildRack(rs.Rack, router, fmt.Sprintf("rack%d", i)); err != nil {
			return fmt.Errorf("build rack %s: %w", rs.Name, err)
		}
	}
	first := s.Racks[0].Rack
	s.Router = Endpoint{Name: "router", Rack: first.Name, NetnsPath: router, V4: first.Gateway4, V6: first.Gateway6}
	return r.linkHost(s)
}

// buildRack makes a rack's bridge and plugs the router in.
func buildRack(rack Rack, router, routerLink string) error {
	if err := makeNetns(rack.NetnsPath); err != nil {
		return err
	}
	err := inNetns(rack.NetnsPath, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridgeName
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("make bridge: %w", err)
		}
		return setLink(bridgeName, true)
	})
	if err != nil {
		return err
	}
	return cable{
		rackNetns: rack.NetnsPath, port: "router", netns: router, name: routerLink, attached: true,
		addrs: []netip.Prefix{netip.PrefixFrom(rack.Gateway4, rack.V4.Bits()), netip.PrefixFrom(rack.Gateway6, rack.V6.Bits())},
	}.lay()
}

// hostLink is the name of the host's interface into the first rack.
func hostLink(id string) string { return id + "h" }

// linkHost connects the root namespace with the first rack and routes the others.
func (r *Rig) linkHost(s *state) error {
	rack := s.Racks[0].Rack
	s.Host = Endpoint{Name: "host", Rack: rack.Name, V4: nthAddr(rack.V4, gatewayHost), V6: nthAddr(rack.V6, gatewayHost)}
	err := cable{
		rackNetns: rack.NetnsPath, port: "host", name: hostLink(r.id), attached: true,
		addrs: []netip.Prefix{netip.PrefixFrom(s.Host.V4, rack.V4.Bits()), netip.PrefixFrom(s.Host.V6, rack.V6.Bits())},
	}.lay()
	if err != nil {
		return fmt.Errorf("link the host: %w", err)
	}
	for _, rs := range s.Racks[1:] {
		if err := addRoute(rs.V4, rack.Gateway4, hostLink(r.id)); err != nil {
			return err
		}
		if err := addRoute(rs.V6, rack.Gateway6, hostLink(r.id)); err != nil {
			return err
		}
	}
	return nil
}

// removeNetwork removes every namespace and link that carries the rig's name.
func (r *Rig) removeNetwork() error {
	paths, err := filepath.Glob(netnsPath(r.id, "*"))
	if err != nil {
		return err
	}
	if l, err := netlink.LinkByName(hostLink(r.id)); err == nil {
		if err := netlink.LinkDel(l); err != nil {
			return fmt.Errorf("remove link %s: %w", hostLink(r.id), err)
		}
	}
	for _, p := range paths {
		if err := removeNetns(p); err != nil {
			return err
		}
	}
	return nil
}

// chooseSubnets fills in the subnets that the configuration leaves open. The caller
// holds the host-wide lock until the routes exist.
func chooseSubnets(id string, cfgs []RackConfig) ([]rackState, error) {
	used, err := hostSubnets()
	if err != nil {
		return nil, err
	}
	ula := [16]byte{0: 0xfd}
	_, _ = rand.Read(ula[1:6])
	var racks []rackState
	for i, c := range cfgs {
		if c.Name == "" {
			c.Name = fmt.Sprintf("rack-%d", i)
		}
		if !c.V6.IsValid() {
			ula[7] = byte(i)
			c.V6 = netip.PrefixFrom(netip.AddrFrom16(ula), 64)
		}
		if !c.V4.IsValid() {
			if c.V4, err = freeSubnet(used, ula[3], ula[4]); err != nil {
				return nil, err
			}
		}
		used = append(used, c.V4)
		racks = append(racks, rackState{Next: firstHost, Rack: Rack{
			Name: c.Name, NetnsPath: netnsPath(id, c.Name), V4: c.V4.Masked(), V6: c.V6.Masked(),
			Gateway4: nthAddr(c.V4, routerHost), Gateway6: nthAddr(c.V6, routerHost),
		}})
	}
	return racks, nil
}

// hostSubnets lists every IPv4 destination the host has a route for, in all tables.
func hostSubnets() ([]netip.Prefix, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list the host's routes: %w", err)
	}
	var used []netip.Prefix
	for _, rt := range routes {
		if rt.Dst == nil {
			continue
		}
		ones, _ := rt.Dst.Mask.Size()
		if a, ok := netip.AddrFromSlice(rt.Dst.IP.To4()); ok && ones > 0 {
			used = append(used, netip.PrefixFrom(a, ones))
		}
	}
	return used, nil
}

// freeSubnet picks a /24 in 10.160.0.0/11, away from what Kubernetes uses by habit
// (10.96/16, 10.244/16), that overlaps nothing used. a and b are where to begin.
func freeSubnet(used []netip.Prefix, a, b byte) (netip.Prefix, error) {
	for i := range 32 * 256 {
		n := (int(a)*256 + int(b) + i) % (32 * 256)
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 160 + byte(n/256), byte(n % 256), 0}), 24)
		if !slices.ContainsFunc(used, p.Overlaps) {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("choose a subnet: no /24 of 10.160.0.0/11 is free")
}
