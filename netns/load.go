package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/paths"
)

// load fills the Manager from the kernel: pods from the links' aliases, host ports from
// the table's maps. What has no namespace or no identity any more is doomed.
func (m *Manager) load() error {
	links, err := m.podLinks()
	if err != nil {
		return err
	}
	owners := map[netip.Addr]string{}
	for _, l := range links { // in the order of creation
		id, ok := parseAlias(l.Alias)
		if !ok || !linuxns.Bound(m.layout.Namespace(id.uid, "net")) {
			m.dying[l.Name] = doomed{link: l.Index, name: l.Name, uid: id.uid, ips: id.ips}
			m.alloc.claim(l.Name, id.ips)
			continue
		}
		m.alloc.claim(id.uid, id.ips)
		m.pods[id.uid] = &podRecord{ips: id.ips, ports: map[hostPortKey]netip.AddrPort{}, link: l.Index}
		for _, ip := range id.ips {
			owners[ip] = id.uid
		}
		m.youngest = id.ips
	}
	m.loadHostPorts(owners)
	for uid, p := range m.pods {
		m.rules.content.merge(podElements(linkName(uid), p.ips, p.ports))
	}
	return nil
}

// loadHostPorts keeps the published ports of pods that are still there, so that a
// restart of the agent does not close them until their pods are set up again.
func (m *Manager) loadHostPorts(owners map[netip.Addr]string) {
	for _, set := range []string{mapHostPort4, mapHostPort6, mapAnyPort4, mapAnyPort6} {
		for key, val := range m.rules.read(set) {
			k, to, ok := parseHostPort(set, key, val)
			if uid := owners[to.Addr()]; ok && uid != "" {
				m.pods[uid].ports[k] = to
				m.ports[k] = uid
			}
		}
	}
}

// podLinks lists our links, oldest first. It dumps all links: not for the hot path.
func (m *Manager) podLinks() ([]*netlink.LinkAttrs, error) {
	all, err := dumpLinks(m.nl)
	if err != nil {
		return nil, err
	}
	var ours []*netlink.LinkAttrs
	for _, l := range all {
		if a := l.Attrs(); a.Group == LinkGroup && l.Type() == "veth" {
			ours = append(ours, a)
		}
	}
	slices.SortFunc(ours, func(a, b *netlink.LinkAttrs) int { return a.Index - b.Index })
	return ours, nil
}

// dumpLinks repeats a dump that a change interrupted.
func dumpLinks(h *netlink.Handle) ([]netlink.Link, error) {
	for try := 0; ; try++ {
		all, err := h.LinkList()
		if err == nil {
			return all, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) || try == 10 {
			return nil, fmt.Errorf("list links: %w", err)
		}
	}
}

// List implements Network: what the kernel has, links on their way out included.
func (m *Manager) List(ctx context.Context) (map[string]PodAddress, error) {
	out := map[string]PodAddress{}
	links, err := m.podLinks()
	if err != nil {
		return nil, fmt.Errorf("list pod networks: %w", err)
	}
	for _, l := range links {
		if id, ok := parseAlias(l.Alias); ok {
			out[id.uid] = PodAddress{IPs: id.ips}
		}
	}
	bound, err := namespaces(m.layout)
	if err != nil {
		return nil, fmt.Errorf("list pod networks: %w", err)
	}
	for uid, at := range bound {
		out[uid] = PodAddress{Path: at.Path, IPs: out[uid].IPs}
	}
	return out, ctx.Err()
}

// namespaces are the pods' namespaces that are bound, by UID, without addresses.
func namespaces(layout paths.Layout) (map[string]PodAddress, error) {
	dirs, err := os.ReadDir(filepath.Dir(layout.PodRun("x")))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	out := map[string]PodAddress{}
	for _, d := range dirs {
		if path := layout.Namespace(d.Name(), "net"); linuxns.Bound(path) {
			out[d.Name()] = PodAddress{Path: path}
		}
	}
	return out, nil
}
