package config

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"time"

	"gopkg.in/yaml.v3"
	"k8s.io/apimachinery/pkg/labels"
)

// BGPKind opens every BGP configuration, in a file or in a ConfigMap.
const BGPKind = "BGPConfig"

// BGP is a checked BGP configuration: one for all nodes, each takes what its labels select.
type BGP struct {
	// ASN of nodes without an annotation that says otherwise.
	ASN uint32
	// ListenPort is TCP's, 179; 0 does not listen: then all peers must be passive ones.
	ListenPort int
	// Mesh makes a session between every two nodes.
	Mesh bool
	// RestartTime is how long peers keep a node's routes while its agent is gone (RFC 4724);
	// 0 turns graceful restart off.
	RestartTime time.Duration
	Advertise   Advertise
	Import      Import
	Peers       []BGPPeer

	name, text string // what it was read from
}

// Advertise says what the nodes tell their peers.
type Advertise struct {
	PodCIDRs bool
	// Services are the kinds of address that are told: ClusterIP, ExternalIP, LoadBalancerIP.
	Services []string
	// ServiceSelector narrows the Services by their labels.
	ServiceSelector labels.Selector
	// Prefixes are told by every node as they are, such as the range of cluster IPs.
	Prefixes []netip.Prefix
	// Communities are on every route; LocalPref (0: the default, 100) on those to iBGP peers.
	Communities []string
	LocalPref   uint32
}

// Import bounds what peers can make a node do.
type Import struct {
	// Prefixes are ranges, besides the nodes' podCIDRs, in which routes are accepted.
	Prefixes []netip.Prefix
	// MaxPrefixes is how many one peer may send in each address family before its session is closed.
	MaxPrefixes int
}

// BGPPeer is a session of every node that Nodes selects: with one router, or with the
// nodes that PeerNodes selects.
type BGPPeer struct {
	Name      string
	Nodes     labels.Selector
	Address   netip.Addr
	PeerNodes labels.Selector // nil with Address
	// ASN of the peer; 0 for nodes, whose own is taken.
	ASN           uint32
	Port          int
	SourceAddress netip.Addr
	Passive       bool
	// PasswordFile holds the key of TCP MD5 (RFC 2385); only root may read it.
	PasswordFile string
	// TTLSecurity takes packets of direct neighbours only (RFC 5082).
	TTLSecurity bool
	// Multihop is the TTL towards an eBGP peer that is not a direct neighbour; 0 is 1.
	Multihop                         int
	HoldTime, KeepAlive, ConnectTime time.Duration
	// Families are IPv4 and IPv6; empty are those that the session can carry.
	Families    []string
	MaxPrefixes int
	// RouteReflectorClient makes this node reflect routes to the peer (RFC 4456).
	RouteReflectorClient bool
	ClusterID            netip.Addr
	Communities          []string
	LocalPref            uint32
}

// LoadBGP reads and checks a BGP configuration file.
func LoadBGP(path string) (BGP, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return BGP{}, fmt.Errorf("read BGP configuration: %w", err)
	}
	return ParseBGP(path, data)
}

// ParseBGP checks data as the BGP configuration called name. All mistakes are reported at
// once, as Errors.
func ParseBGP(name string, data []byte) (BGP, error) {
	b := BGP{
		ListenPort: 179, RestartTime: 2 * time.Minute,
		Advertise: Advertise{PodCIDRs: true, ServiceSelector: labels.Everything()},
		Import:    Import{MaxPrefixes: 20000},
		name:      name, text: string(data),
	}
	d := &decoder{file: name}
	if root := d.document(data); root != nil {
		d.mapping("", root, b.fields(d)...)
		b.crossCheck(d, root)
	}
	if len(d.errs) > 0 {
		return BGP{}, d.errs.sorted()
	}
	return b, nil
}

// savedBGP is a configuration in JSON: the text that it was read from.
type savedBGP struct{ Name, Text string }

// MarshalJSON implements json.Marshaler.
func (b BGP) MarshalJSON() ([]byte, error) { return json.Marshal(savedBGP{b.name, b.text}) }

// UnmarshalJSON implements json.Unmarshaler.
func (b *BGP) UnmarshalJSON(data []byte) error {
	var saved savedBGP
	if err := json.Unmarshal(data, &saved); err != nil {
		return err
	}
	var err error
	*b, err = ParseBGP(saved.Name, []byte(saved.Text))
	return err
}

func (b *BGP) fields(d *decoder) []field {
	var apiVersion, kind string
	kinds := parseOneOf("ClusterIP", "ExternalIP", "LoadBalancerIP")
	return []field{
		parsed(d, "apiVersion", &apiVersion, parseExactly(APIVersion)),
		parsed(d, "kind", &kind, parseExactly(BGPKind)),
		parsed(d, "asn", &b.ASN, ParseASN),
		parsed(d, "listenPort", &b.ListenPort, parseInt(0, 65535)),
		parsed(d, "mesh", &b.Mesh, parseBool),
		parsed(d, "restartTime", &b.RestartTime, parseSeconds(0, 4095)),
		d.section("advertise",
			parsed(d, "podCIDRs", &b.Advertise.PodCIDRs, parseBool),
			listOf(d, "services", &b.Advertise.Services, kinds),
			parsed(d, "serviceSelector", &b.Advertise.ServiceSelector, parseSelector),
			listOf(d, "prefixes", &b.Advertise.Prefixes, parseRange),
			listOf(d, "communities", &b.Advertise.Communities, parseCommunity),
			parsed(d, "localPref", &b.Advertise.LocalPref, parseUint32)),
		d.section("import",
			listOf(d, "prefixes", &b.Import.Prefixes, parseRange),
			parsed(d, "maxPrefixes", &b.Import.MaxPrefixes, parseInt(1, 1000000))),
		{"peers", func(key string, node *yaml.Node) { b.Peers = d.bgpPeers(key, node) }},
	}
}

func (b *BGP) crossCheck(d *decoder, root *yaml.Node) {
	for key, want := range map[string]string{"apiVersion": APIVersion, "kind": BGPKind} {
		if lookup(root, key) == nil {
			d.fail(root.Line, key, "missing: write %s: %s", key, want)
		}
	}
	if b.ASN == 0 && lookup(root, "asn") == nil {
		d.fail(root.Line, "asn", "missing: give the nodes' AS number, such as 64512")
	}
}

// bgpPeers reads the list of peers.
func (d *decoder) bgpPeers(key string, node *yaml.Node) (peers []BGPPeer) {
	names := map[string]bool{}
	d.items(key, node, func(item *yaml.Node) {
		p := BGPPeer{Nodes: labels.Everything(), Port: 179, HoldTime: 90 * time.Second, ConnectTime: 5 * time.Second}
		before := len(d.errs)
		at := fmt.Sprintf("%s[%d]", key, len(peers))
		d.mapping(at, item, p.fields(d)...)
		if len(d.errs) > before {
			return
		}
		if problem := p.check(); problem != "" {
			d.fail(item.Line, at, "%s", problem)
		} else if names[p.Name] {
			d.fail(item.Line, at+".name", "%q is the name of another peer", p.Name)
		}
		names[p.Name] = true
		peers = append(peers, p)
	})
	return peers
}

func (p *BGPPeer) fields(d *decoder) []field {
	return []field{
		parsed(d, "name", &p.Name, parsePeerName),
		parsed(d, "nodes", &p.Nodes, parseSelector),
		parsed(d, "address", &p.Address, parseNodeIP),
		parsed(d, "peerNodes", &p.PeerNodes, parseSelector),
		parsed(d, "asn", &p.ASN, ParseASN),
		parsed(d, "port", &p.Port, parseInt(1, 65535)),
		parsed(d, "sourceAddress", &p.SourceAddress, parseNodeIP),
		parsed(d, "passive", &p.Passive, parseBool),
		parsed(d, "passwordFile", &p.PasswordFile, parsePath),
		parsed(d, "ttlSecurity", &p.TTLSecurity, parseBool),
		parsed(d, "multihop", &p.Multihop, parseInt(2, 255)),
		parsed(d, "holdTime", &p.HoldTime, parseSeconds(3, 65535)),
		parsed(d, "keepalive", &p.KeepAlive, parseSeconds(1, 21845)),
		parsed(d, "connectRetry", &p.ConnectTime, parseSeconds(1, 65535)),
		listOf(d, "families", &p.Families, parseOneOf("IPv4", "IPv6")),
		parsed(d, "maxPrefixes", &p.MaxPrefixes, parseInt(1, 1000000)),
		parsed(d, "routeReflectorClient", &p.RouteReflectorClient, parseBool),
		parsed(d, "clusterID", &p.ClusterID, parseIPv4),
		listOf(d, "communities", &p.Communities, parseCommunity),
		parsed(d, "localPref", &p.LocalPref, parseUint32),
	}
}

// check finds what no single key of a peer can.
func (p *BGPPeer) check() string {
	switch {
	case p.Name == "":
		return "a peer needs a name"
	case p.Address.IsValid() == (p.PeerNodes != nil):
		return "give either address, of a router, or peerNodes, a selector of nodes"
	case p.PeerNodes == nil && p.ASN == 0:
		return "a peer with an address needs its asn"
	case p.PeerNodes != nil && p.ASN != 0:
		return "the asn of peerNodes is the nodes' own: remove it"
	case p.TTLSecurity && p.Multihop > 0:
		return "ttlSecurity and multihop contradict each other: keep one"
	case p.KeepAlive > 0 && p.KeepAlive >= p.HoldTime:
		return "keepalive must be shorter than holdTime"
	case p.SourceAddress.IsValid() && p.Address.IsValid() && p.SourceAddress.Is4() != p.Address.Is4():
		return "sourceAddress and address must be of one IP version"
	case p.Address.Is6() && slices.Contains(p.Families, "IPv4"):
		return "IPv4 routes need a session over IPv4: give an IPv4 address, or remove IPv4 from families"
	}
	return ""
}

// ParseASN reads an AS number (RFC 6793): 1 to 4294967294, without those that stand for none.
func ParseASN(text string) (uint32, error) {
	n, err := parseUint32(text)
	if err != nil || n == 0 || n == 23456 || n == 65535 || n == 1<<32-1 {
		return 0, fmt.Errorf("%q is not an AS number such as 64512 or 4200000000", text)
	}
	return n, nil
}

func parseUint32(text string) (uint32, error) {
	n, err := parseInt(0, 1<<32-1)(text)
	return uint32(n), err
}

func parseSeconds(low, high int) func(string) (time.Duration, error) {
	return func(text string) (time.Duration, error) {
		d, err := parseDuration(text)
		if err != nil {
			return 0, err
		}
		if d%time.Second != 0 || d < time.Duration(low)*time.Second || d > time.Duration(high)*time.Second {
			return 0, fmt.Errorf("%q must be whole seconds, from %ds to %ds", text, low, high)
		}
		return d, nil
	}
}

func parseSelector(text string) (labels.Selector, error) {
	s, err := labels.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%q is not a label selector such as rack=a,!edge: %w", text, err)
	}
	return s, nil
}

// parseRange is a prefix that may be told or accepted: never a default route.
func parseRange(text string) (netip.Prefix, error) {
	p, err := parsePrefix(text)
	if err == nil && p.Bits() < 8 {
		err = fmt.Errorf("%q is too wide: give ranges of /8 and longer", text)
	}
	return p, err
}

func parseIPv4(text string) (netip.Addr, error) {
	a, err := parseAddr(text)
	if err == nil && !a.Is4() {
		err = fmt.Errorf("%q must be written as an IPv4 address", text)
	}
	return a, err
}

var peerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$`)

func parsePeerName(text string) (string, error) {
	if !peerName.MatchString(text) {
		return "", fmt.Errorf("%q must be a name of lower-case letters, digits, '-' and '.'", text)
	}
	return text, nil
}

var (
	communityForm    = regexp.MustCompile(`^(\d{1,10}):(\d{1,10})(:(\d{1,10}))?$`)
	knownCommunities = []string{"no-export", "no-advertise", "local-as", "no-peer", "graceful-shutdown", "blackhole"}
)

// parseCommunity takes RFC 1997's (two numbers), RFC 8092's (three) and well-known names.
func parseCommunity(text string) (string, error) {
	if slices.Contains(knownCommunities, text) {
		return text, nil
	}
	m := communityForm.FindStringSubmatch(text)
	if m == nil {
		return "", fmt.Errorf("%q is not a community such as 64512:100, 64512:1:2 or no-export", text)
	}
	high := 65535
	if m[4] != "" {
		high = 1<<32 - 1
	}
	for _, part := range []string{m[1], m[2], m[4]} {
		if _, err := parseInt(0, high)(part); part != "" && err != nil {
			return "", fmt.Errorf("%q: %w", text, err)
		}
	}
	return text, nil
}
