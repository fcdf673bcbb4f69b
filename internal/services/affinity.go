package services

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"time"
)

// group is the chains and sets of one port with session affinity: each endpoint has a set
// of the clients that stay with it.
type group struct {
	ipv6    bool
	proto   Protocol
	timeout time.Duration
	cluster []netip.AddrPort
	here    []netip.AddrPort
}

func newGroup(p *Port) *group {
	sorted := func(list []netip.AddrPort) []netip.AddrPort {
		list = slices.Clone(list)
		slices.SortFunc(list, netip.AddrPort.Compare)
		return list
	}
	return &group{p.IPv6(), p.Protocol, p.Affinity, sorted(p.Cluster), sorted(p.Here)}
}

func (g *group) equal(o *group) bool {
	return g.ipv6 == o.ipv6 && g.proto == o.proto && g.timeout == o.timeout && slices.Equal(g.cluster, o.cluster) && slices.Equal(g.here, o.here)
}

// groupName is the common start of the chains' names.
func (p *Port) groupName() string {
	family := "4"
	if p.IPv6() {
		family = "6"
	}
	sum := sha256.Sum256([]byte(p.ID + family))
	return "affinity-" + hex.EncodeToString(sum[:8])
}

// groupChain is the chain of the group that serves the frontend.
func (p *Port) groupChain(f *Frontend) string {
	switch {
	case f.Kind == ClusterIP && f.Local:
		return p.groupName() + "-here"
	case f.Kind == ClusterIP:
		return p.groupName() + "-" + chainCluster
	case f.Local:
		return p.groupName() + "-" + chainLocal
	}
	return p.groupName() + "-" + chainExternal
}

// regroup notes the groups of a Service's ports and says which changed.
func (s *state) regroup(old, ports []Port) map[string]*group {
	changed := map[string]*group{}
	for i := range old {
		if old[i].Affinity > 0 {
			changed[old[i].groupName()] = nil
		}
	}
	for i := range ports {
		if ports[i].Affinity > 0 {
			changed[ports[i].groupName()] = newGroup(&ports[i])
		}
	}
	for name, g := range changed {
		have := s.groups[name]
		switch {
		case g == nil:
			delete(s.groups, name)
		case have != nil && have.equal(g):
			delete(changed, name)
		default:
			s.groups[name] = g
		}
	}
	return changed
}
