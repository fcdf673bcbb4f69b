package bgp

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/vk-metal/vk-metal/internal/config"
)

// Inputs of Plan.
type Inputs struct {
	Config   config.BGP
	Self     Node
	Others   []Node
	Services []Service
	// Withdrawn tells nothing to anybody, as AnnotationWithdraw "all" does.
	Withdrawn bool
	// Encrypted are the ranges that only tunnels may lead to: no route inside of them is taken.
	Encrypted []netip.Prefix
}

// nodeHops is the TTL towards nodes, which may be behind routers.
const nodeHops = 64

// Plan decides what the node's BGP should be.
func Plan(in Inputs) State {
	s := State{
		ListenPort: in.Config.ListenPort, RestartTime: in.Config.RestartTime,
		Communities: in.Config.Advertise.Communities, LocalPref: in.Config.Advertise.LocalPref,
	}
	s.ASN = s.nodeASN(in.Config.ASN, &in.Self)
	s.RouterID = s.routerID(&in.Self)
	s.peers(in)
	s.routes(in)
	s.Filter = newFilter(in)
	return s
}

func (s *State) problem(node, format string, args ...any) {
	s.Problems = append(s.Problems, Problem{Node: node, Text: fmt.Sprintf(format, args...)})
}

// nodeASN is a node's own AS number; a bad annotation leaves the configuration's.
func (s *State) nodeASN(common uint32, n *Node) uint32 {
	text, ok := n.Annotations[AnnotationASN]
	if !ok {
		return common
	}
	asn, err := config.ParseASN(text)
	if err != nil {
		s.problem(n.Name, "annotation %s: %s; the configuration's %d is used", AnnotationASN, err, common)
		return common
	}
	return asn
}

func (s *State) routerID(n *Node) netip.Addr {
	if text, ok := n.Annotations[AnnotationRouterID]; ok {
		if a, err := netip.ParseAddr(text); err == nil && a.Is4() && !a.IsUnspecified() {
			return a
		}
		s.problem(n.Name, "annotation %s: %q is not in the form of an IPv4 address such as 192.0.2.7", AnnotationRouterID, text)
	}
	if a := n.addr(true); a.IsValid() {
		return a
	}
	h := fnv.New32a() // RFC 6286: any number that is unique in the AS
	_, _ = h.Write([]byte(n.Name))
	sum := h.Sum32() | 1
	return netip.AddrFrom4([4]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
}

// peers lists the sessions that the configuration gives to this node.
func (s *State) peers(in Inputs) {
	byAddress := map[netip.Addr]string{}
	add := func(p Peer) {
		if other, twice := byAddress[p.Address]; twice {
			s.problem("", "peers %s and %s have the address %s: the first is used", other, p.Name, p.Address)
			return
		}
		byAddress[p.Address] = p.Name
		s.Peers = append(s.Peers, p)
	}
	for _, c := range in.Config.Peers {
		if !c.Nodes.Matches(labels.Set(in.Self.Labels)) {
			continue
		}
		if c.PeerNodes == nil {
			add(s.router(&c, in))
			continue
		}
		s.nodePeers(&c, in, add)
	}
	if in.Config.Mesh {
		mesh := config.BGPPeer{
			Name: "mesh", PeerNodes: labels.Everything(), Port: cmpPort(in.Config.ListenPort),
			HoldTime: 90 * time.Second, ConnectTime: 5 * time.Second,
		}
		s.nodePeers(&mesh, in, func(p Peer) {
			if byAddress[p.Address] == "" { // one that is named goes before the mesh
				add(p)
			}
		})
	}
	slices.SortFunc(s.Peers, func(a, b Peer) int { return a.Address.Compare(b.Address) })
}

func cmpPort(port int) int {
	if port == 0 {
		return 179
	}
	return port
}

// router is a session with an address of the configuration.
func (s *State) router(c *config.BGPPeer, in Inputs) Peer {
	p := common(c, in)
	p.Name, p.Address, p.Source, p.ASN = c.Name, c.Address, c.SourceAddress, c.ASN
	p.families(c, &in.Self)
	return p
}

// nodePeers makes a session with each selected node, over the first IP version that both have.
func (s *State) nodePeers(c *config.BGPPeer, in Inputs, add func(Peer)) {
	for i := range in.Others {
		n := &in.Others[i]
		if !c.PeerNodes.Matches(labels.Set(n.Labels)) {
			continue
		}
		p := common(c, in)
		p.Name, p.ASN = c.Name+"/"+n.Name, s.nodeASN(in.Config.ASN, n)
		for _, is4 := range []bool{true, false} {
			if mine, its := in.Self.addr(is4), n.addr(is4); mine.IsValid() && its.IsValid() {
				p.Address, p.Source = its, mine
				break
			}
		}
		if !p.Address.IsValid() {
			s.problem("", "peer %s: this node and %s have no address of one IP version", c.Name, n.Name)
			continue
		}
		if p.ASN != s.ASN && p.Multihop == 0 && !p.TTLSecurity {
			p.Multihop = nodeHops
		}
		p.families(c, &in.Self)
		add(p)
	}
}

func common(c *config.BGPPeer, in Inputs) Peer {
	p := Peer{
		Port: c.Port, Passive: c.Passive, TTLSecurity: c.TTLSecurity, Multihop: c.Multihop, PasswordFile: c.PasswordFile,
		HoldTime: c.HoldTime, KeepAlive: c.KeepAlive, ConnectTime: c.ConnectTime, MaxPrefixes: c.MaxPrefixes,
		ReflectorClient: c.RouteReflectorClient, ClusterID: c.ClusterID, Communities: strings.Join(c.Communities, " "), LocalPref: c.LocalPref,
	}
	if p.MaxPrefixes == 0 {
		p.MaxPrefixes = in.Config.Import.MaxPrefixes
	}
	if p.KeepAlive == 0 {
		p.KeepAlive = max((p.HoldTime / 3).Truncate(time.Second), time.Second)
	}
	return p
}

// families are the configuration's, or what the session can carry: IPv6 over IPv4 needs an
// IPv6 address of ours as next hop.
func (p *Peer) families(c *config.BGPPeer, self *Node) {
	p.IPv4 = p.Address.Is4()
	p.IPv6 = p.Address.Is6() || self.addr(false).IsValid()
	if len(c.Families) > 0 {
		p.IPv4 = p.IPv4 && slices.Contains(c.Families, "IPv4")
		p.IPv6 = p.IPv6 && slices.Contains(c.Families, "IPv6")
	}
}

// routes lists what the node tells.
func (s *State) routes(in Inputs) {
	withdraw := in.Self.Annotations[AnnotationWithdraw]
	if withdraw != "" && withdraw != WithdrawServices && withdraw != WithdrawAll {
		s.problem(in.Self.Name, "annotation %s: %q is neither %s nor %s; nothing is withdrawn", AnnotationWithdraw, withdraw, WithdrawServices, WithdrawAll)
		withdraw = ""
	}
	if in.Withdrawn || withdraw == WithdrawAll {
		return
	}
	why := map[netip.Prefix][]string{}
	if in.Config.Advertise.PodCIDRs {
		for _, cidr := range in.Self.PodCIDRs {
			why[cidr] = append(why[cidr], "podCIDR")
		}
	}
	_, excluded := in.Self.Labels[labelExclude]
	if withdraw != WithdrawServices {
		for _, p := range in.Config.Advertise.Prefixes {
			why[p] = append(why[p], "configuration")
		}
		for i := range in.Services {
			in.Services[i].told(&in.Config.Advertise, excluded, func(a netip.Addr) {
				p := netip.PrefixFrom(a, a.BitLen())
				why[p] = append(why[p], "service "+in.Services[i].Name)
			})
		}
	}
	over4 := slices.ContainsFunc(s.Peers, func(p Peer) bool { return p.IPv6 && p.Address.Is4() })
	for _, prefix := range sortedKeys(why) {
		r := Route{Prefix: prefix, Why: why[prefix]}
		slices.Sort(r.Why)
		r.Why = slices.Compact(r.Why)
		if prefix.Addr().Is6() && over4 {
			r.NextHop = in.Self.addr(false)
		}
		s.Routes = append(s.Routes, r)
	}
}

// told calls each for every address of the Service that this node tells.
func (v *Service) told(a *config.Advertise, excluded bool, each func(netip.Addr)) {
	if !a.ServiceSelector.Matches(labels.Set(v.Labels)) {
		return
	}
	some := func(local bool) bool { return v.Here || v.Ready && !local }
	for _, kind := range []struct {
		name  string
		addrs []netip.Addr
		told  bool
	}{
		{"ClusterIP", v.ClusterIPs, some(v.LocalInternal)},
		{"ExternalIP", v.ExternalIPs, some(v.LocalExternal) && !excluded},
		{"LoadBalancerIP", v.LoadBalancerIPs, some(v.LocalExternal) && !excluded},
	} {
		if !kind.told || !slices.Contains(a.Services, kind.name) {
			continue
		}
		for _, addr := range kind.addrs {
			each(addr)
		}
	}
}
