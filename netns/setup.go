package netns

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// setup is one run of Setup. Each step may be repeated after a kill at any point.
type setup struct {
	m    *Manager
	pod  PodNetwork
	path string
	name string // of the host side
	rec  *podRecord
	ns   *linuxns.NS
	link netlink.Link // the host side
	made bool         // the link was made just now
}

// Setup implements Network. The steps are ordered so that what a kill leaves can always
// be found again by the UID: namespace, link, identity and addresses (the link's alias),
// rules, pod side, host side. A failed Setup leaves its address claimed for the next
// try; Teardown gives it back.
func (m *Manager) Setup(ctx context.Context, pod PodNetwork) (PodAddress, error) {
	a, err := m.setUp(ctx, pod)
	if err != nil {
		return PodAddress{}, fmt.Errorf("set up network of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return a, nil
}

func (m *Manager) setUp(ctx context.Context, pod PodNetwork) (PodAddress, error) {
	if err := checkUID(pod.PodUID); err != nil {
		return PodAddress{}, err
	}
	if err := m.Ready(); err != nil {
		return PodAddress{}, fmt.Errorf("pod network is not ready: %w", err)
	}
	unlock, err := m.locks.LockContext(ctx, pod.PodUID)
	if err != nil {
		return PodAddress{}, err
	}
	defer unlock()
	if err := m.turns.Acquire(ctx, 1); err != nil {
		return PodAddress{}, fmt.Errorf("wait for other pods' networks: %w", err)
	}
	defer m.turns.Release(1)
	s := &setup{m: m, pod: pod, path: m.layout.Namespace(pod.PodUID, "net"), name: linkName(pod.PodUID)}
	defer s.close()
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"namespace", s.namespace},
		{"link", s.makeLink},
		{"identity", s.identity},
		{"rules", s.rules},
		{"host up", s.hostUp},
		{"pod side", s.podSide},
		{"host side", s.hostSide},
		{"bandwidth", s.bandwidth},
		{"sysctls", s.sysctls},
	} {
		if err := ctx.Err(); err != nil {
			return PodAddress{}, err
		}
		if err := step.do(); err != nil {
			return PodAddress{}, err
		}
		if m.onStep != nil {
			if err := m.onStep("setup " + step.name); err != nil {
				return PodAddress{}, err
			}
		}
	}
	m.mu.Lock()
	s.rec.link = s.link.Attrs().Index
	m.mu.Unlock()
	return PodAddress{Path: s.path, IPs: slices.Clone(s.rec.ips)}, nil
}

func (s *setup) close() {
	if s.ns != nil {
		_ = s.ns.Close()
	}
}

// namespace makes or finds the namespace. A link that has lost its namespace belongs to
// an unfinished Teardown: it goes first.
func (s *setup) namespace() error {
	if !linuxns.Bound(s.path) {
		if err := s.m.finishTeardown(s.pod.PodUID); err != nil {
			return err
		}
	}
	if err := linuxns.Create(s.path); err != nil {
		return err
	}
	var err error
	s.ns, err = linuxns.Open(s.path)
	return err
}

// makeLink makes or finds the veth pair. A host side that has no identity yet, or whose
// peer is not in the namespace, is the rest of a killed Setup and made anew.
func (s *setup) makeLink() error {
	l, err := linkByName(s.m.nl, s.name)
	if err != nil {
		return err
	}
	if l != nil {
		id, ok := parseAlias(l.Attrs().Alias)
		switch {
		case ok && id.uid != s.pod.PodUID, l.Attrs().Group != LinkGroup, l.Type() != "veth":
			return fmt.Errorf("link %s exists and is not this pod's (alias %q)", s.name, l.Attrs().Alias)
		case ok && s.hasPeer(l):
			s.link = l
			return nil
		}
		if err := s.m.nl.LinkDel(l); err != nil && !notFound(err) {
			return fmt.Errorf("remove unfinished link %s: %w", s.name, err)
		}
	}
	return s.addLink()
}

// hasPeer says whether the link's other end is the pod's eth0.
func (s *setup) hasPeer(l netlink.Link) bool {
	h, err := s.ns.Netlink()
	if err != nil {
		return false
	}
	defer h.Close()
	eth0, err := h.LinkByName(podLink)
	return err == nil && eth0.Attrs().Index == l.Attrs().ParentIndex && eth0.Attrs().ParentIndex == l.Attrs().Index
}

func (s *setup) addLink() error {
	s.m.mu.Lock()
	mtu := s.m.mtu
	s.m.mu.Unlock()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr, attrs.Group = s.name, mtu, hostMAC, LinkGroup
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = podLink, podMAC(s.pod.PodUID), uint32(mtu)
	veth.PeerNamespace = netlink.NsFd(s.ns.FD())
	if err := s.m.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("add link %s: %w", s.name, err)
	}
	l, err := linkByName(s.m.nl, s.name)
	if err == nil && l == nil {
		err = fmt.Errorf("link %s is gone right after it was made", s.name)
	}
	s.link, s.made = l, true
	return err
}

// identity finds the pod's addresses or takes free ones, and writes them into the
// alias: from then on the kernel holds the claim.
func (s *setup) identity() (err error) {
	if s.rec, err = s.m.record(s.pod.PodUID); err != nil {
		return err
	}
	want := identity{s.pod.PodUID, s.rec.ips}.alias()
	if s.link.Attrs().Alias == want {
		return nil
	}
	return wrap(s.m.nl.LinkSetAlias(s.link, want), "set alias of link %s", s.name)
}

// record finds the pod's record or makes one with free addresses.
func (m *Manager) record(uid string) (*podRecord, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if rec := m.pods[uid]; rec != nil {
		return rec, nil
	}
	ips, err := m.alloc.allocate(uid)
	if err != nil {
		return nil, err
	}
	m.pods[uid] = &podRecord{ips: ips}
	return m.pods[uid], nil
}

// rules lets the pod send from its addresses and publishes its host ports.
func (s *setup) rules() error {
	ports, err := resolveHostPorts(s.pod.HostPorts, s.rec.ips)
	if err != nil {
		return err
	}
	old, err := s.m.takePorts(s.pod.PodUID, s.rec, ports)
	if err != nil {
		return err
	}
	if err := s.m.rules.change(podElements(s.name, s.rec.ips, old), podElements(s.name, s.rec.ips, ports)); err != nil {
		return err
	}
	s.m.forgetUDP(old, ports)
	return nil
}

// takePorts books host ports for a pod and gives up those that it does not want any
// more; it says which it had. An error if another pod holds one.
func (m *Manager) takePorts(uid string, rec *podRecord, ports map[hostPortKey]netip.AddrPort) (old map[hostPortKey]netip.AddrPort, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k := range ports {
		if holder := m.ports[k]; holder != "" && holder != uid {
			return nil, fmt.Errorf("host port %s is held by pod %s", k, holder)
		}
	}
	old = rec.ports
	for k := range old {
		delete(m.ports, k)
	}
	for k := range ports {
		m.ports[k] = uid
	}
	rec.ports = maps.Clone(ports)
	return old, nil
}

// sysctls sets the pod's own ones, last, so that they win over ours.
func (s *setup) sysctls() error { return setSysctls(s.ns, s.pod.Sysctls) }

func setSysctls(ns *linuxns.NS, wanted map[string]string) error {
	if len(wanted) == 0 {
		return nil
	}
	return ns.Do(func() error {
		for _, key := range slices.Sorted(maps.Keys(wanted)) {
			if _, err := linuxns.SetSysctl(linuxns.Sysctl{Key: key, Value: wanted[key]}); err != nil {
				return err
			}
		}
		return nil
	})
}
