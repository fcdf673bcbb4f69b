package bgp

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/vk-metal/vk-metal/internal/config"
)

func parse(t testing.TB, text string) config.BGP {
	t.Helper()
	c, err := config.ParseBGP("test", []byte("apiVersion: vk-metal.io/v1alpha1\nkind: BGPConfig\n"+text))
	must(t, err)
	return c
}

func TestPlan(t *testing.T) {
	self := node("a", "192.0.2.1 2001:db8::1", podsA)
	self.Labels["rack"] = "one"
	b, c, six := node("b", "192.0.2.2 2001:db8::2", podsB), node("c", "203.0.113.3", "10.244.3.0/24"), node("six", "2001:db8::6", "fd00:244:6::/64")
	c.Labels["rr"], c.Annotations[AnnotationASN] = "", "64700"
	services := []Service{
		{Name: "x/lb", LoadBalancerIPs: addrs("198.51.100.1"), ClusterIPs: addrs("10.96.0.1"), Ready: true},
		{Name: "x/shares", LoadBalancerIPs: addrs("198.51.100.1"), LocalExternal: true, Ready: true},
		{Name: "x/local", LoadBalancerIPs: addrs("198.51.100.2"), LocalExternal: true, Ready: true},
		{Name: "x/here", LoadBalancerIPs: addrs("198.51.100.3"), ExternalIPs: addrs("2001:db8:5::1"), LocalExternal: true, Ready: true, Here: true},
		{Name: "x/empty", LoadBalancerIPs: addrs("198.51.100.4")},
	}
	for name, tc := range map[string]struct {
		config string
		change func(*Inputs)
		want   string
	}{
		"mesh": {"asn: 64512\nmesh: true\n", nil, `
AS64512 router-id 192.0.2.1 listen 179 restart 2m0s
peer mesh/b 192.0.2.2:179 AS64512 from 192.0.2.1 IPv4 IPv6
peer mesh/c 203.0.113.3:179 AS64700 from 192.0.2.1 IPv4 IPv6 multihop 64
peer mesh/six [2001:db8::6]:179 AS64512 from 2001:db8::1 IPv6
route 10.244.1.0/24 for podCIDR
route fd00:244:1::/64 via 2001:db8::1 for podCIDR
`},
		"reflectors and a rack's router": {`asn: 64512
peers:
- {name: tor, nodes: rack=one, address: 192.0.2.254, asn: 65001, ttlSecurity: true, families: [IPv4], communities: ["1:2"]}
- {name: other, nodes: rack=two, address: 192.0.2.253, asn: 65001}
- {name: rr, peerNodes: rr, passwordFile: /p}
`, nil, `
AS64512 router-id 192.0.2.1 listen 179 restart 2m0s
peer tor 192.0.2.254:179 AS65001 IPv4 ttl-security communities 1:2
peer rr/c 203.0.113.3:179 AS64700 from 192.0.2.1 IPv4 IPv6 multihop 64 password /p
route 10.244.1.0/24 for podCIDR
route fd00:244:1::/64 via 2001:db8::1 for podCIDR
`},
		"services": {"asn: 64512\nadvertise: {podCIDRs: false, services: [LoadBalancerIP, ExternalIP], prefixes: [10.96.0.0/12]}\n", nil, `
AS64512 router-id 192.0.2.1 listen 179 restart 2m0s
route 10.96.0.0/12 for configuration
route 198.51.100.1/32 for service x/lb
route 198.51.100.3/32 for service x/here
route 2001:db8:5::1/128 for service x/here
`},
		"excluded from load balancers": {"asn: 64512\nadvertise: {services: [LoadBalancerIP, ClusterIP]}\n", func(in *Inputs) { in.Self.Labels[labelExclude] = "" }, `
AS64512 router-id 192.0.2.1 listen 179 restart 2m0s
route 10.96.0.1/32 for service x/lb
route 10.244.1.0/24 for podCIDR
route fd00:244:1::/64 for podCIDR
`},
		"annotations": {"asn: 64512\n", func(in *Inputs) {
			in.Self.Annotations = map[string]string{AnnotationASN: "64999", AnnotationRouterID: "1.2.3.4", AnnotationWithdraw: "all"}
		}, `
AS64999 router-id 1.2.3.4 listen 179 restart 2m0s
`},
		"bad annotations": {"asn: 64512\nadvertise: {podCIDRs: false}\n", func(in *Inputs) {
			in.Self.Annotations = map[string]string{AnnotationASN: "x", AnnotationRouterID: "::1", AnnotationWithdraw: "now"}
		}, `
AS64512 router-id 192.0.2.1 listen 179 restart 2m0s
problem node a: annotation bgp.vk-metal.io/asn: "x" is not an AS number such as 64512 or 4200000000; the configuration's 64512 is used
problem node a: annotation bgp.vk-metal.io/router-id: "::1" is not in the form of an IPv4 address such as 192.0.2.7
problem node a: annotation bgp.vk-metal.io/withdraw: "now" is neither services nor all; nothing is withdrawn
`},
		"services withdrawn": {"asn: 64512\nadvertise: {services: [LoadBalancerIP], prefixes: [10.96.0.0/12]}\n", func(in *Inputs) {
			in.Self.Annotations = map[string]string{AnnotationWithdraw: "services"}
		}, `
AS64512 router-id 192.0.2.1 listen 179 restart 2m0s
route 10.244.1.0/24 for podCIDR
route fd00:244:1::/64 for podCIDR
`},
		"one address, two peers": {"asn: 1\nmesh: true\nadvertise: {podCIDRs: false}\npeers:\n- {name: x, address: 192.0.2.2, asn: 2}\n- {name: y, address: 192.0.2.2, asn: 3}\n", func(in *Inputs) {
			in.Others = in.Others[:1]
		}, `
AS1 router-id 192.0.2.1 listen 179 restart 2m0s
peer x 192.0.2.2:179 AS2 IPv4 IPv6
problem peers x and y have the address 192.0.2.2: the first is used
`},
	} {
		t.Run(name, func(t *testing.T) {
			in := Inputs{Config: parse(t, tc.config), Self: self, Others: []Node{b, c, six}, Services: services}
			in.Self.Labels = map[string]string{"rack": "one"}
			if tc.change != nil {
				tc.change(&in)
			}
			state := Plan(in)
			if got := state.String(); got != strings.TrimPrefix(tc.want, "\n") {
				t.Errorf("got\n%swant%s", got, tc.want)
			}
		})
	}
}

func addrs(s string) (out []netip.Addr) {
	for _, a := range strings.Fields(s) {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// TestFilter: whatever a peer tells, the node's own addresses, subnets and podCIDRs and
// other nodes' addresses keep the routes that they have, and nothing undeclared comes in.
func TestFilter(t *testing.T) {
	self := node("a", "192.0.2.1 2001:db8::1", podsA)
	other := node("b", "192.0.2.2 10.244.2.77", podsB) // with an address inside its podCIDR
	in := Inputs{Config: parse(t, "asn: 1\nimport: {prefixes: [10.0.0.0/8, 192.0.0.0/16]}\n"), Self: self, Others: []Node{other}}
	f := newFilter(in)
	subnets := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("10.1.0.0/16")}
	for text, ok := range map[string]bool{
		"10.244.2.0/26": true, "10.2.0.0/16": true, "fd00:244:2::/64": true, "fd00:244:2::5/128": true, "192.0.3.0/24": true,
		"0.0.0.0/0": false, "::/0": false, "10.0.0.0/8": false, "10.1.2.0/24": false, "192.0.2.128/25": false, "192.0.2.77/32": false,
		"10.244.2.0/24": false, "10.244.1.0/25": false, "fd00:244:1::/64": false, "fd00:244::/48": false, "172.16.0.0/16": false, "224.0.0.0/8": false, "127.0.0.0/8": false,
	} {
		if err := f.Check(netip.MustParsePrefix(text), subnets); (err == nil) != ok || err != nil && !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", text, err)
		}
	}
	in.Encrypted = other.PodCIDRs
	sealed := newFilter(in)
	for _, text := range []string{"10.244.2.0/26", "fd00:244:2::/64", "fd00:244:2::5/128"} {
		if err := sealed.Check(netip.MustParsePrefix(text), subnets); !errors.Is(err, ErrRefused) {
			t.Errorf("%s goes past the tunnel: %v", text, err)
		}
	}
	if err := sealed.Check(netip.MustParsePrefix("10.2.0.0/16"), subnets); err != nil {
		t.Errorf("what no tunnel leads to: %v", err)
	}
	safe := slices.Concat(self.PodCIDRs, subnets)
	for _, a := range slices.Concat(self.Addrs, other.Addrs) {
		safe = append(safe, netip.PrefixFrom(a, a.BitLen()))
	}
	rapid.Check(t, func(t *rapid.T) {
		bytes := rapid.SampledFrom([]string{"10.244.1.0", "10.244.2.64", "192.0.2.1", "10.1.5.5", "0.0.0.0", "10.9.0.0"}).Draw(t, "near")
		a := netip.MustParseAddr(bytes).As4()
		a[3] ^= rapid.Byte().Draw(t, "low")
		p := netip.PrefixFrom(netip.AddrFrom4(a), rapid.IntRange(0, 32).Draw(t, "bits")).Masked()
		if f.Check(p, subnets) != nil {
			return
		}
		for _, s := range safe {
			if p.Overlaps(s) {
				t.Fatalf("%s was accepted and overlaps %s", p, s)
			}
		}
		if p.Bits() < 8 {
			t.Fatalf("%s was accepted", p)
		}
	})
}

func TestChoose(t *testing.T) {
	prefix := netip.MustParsePrefix("10.244.9.0/24")
	dead := errors.New("dead")
	resolve := func(a netip.Addr) (Hop, error) {
		if a == netip.MustParseAddr("192.0.2.66") {
			return Hop{}, dead
		}
		return Hop{a, 2}, nil
	}
	via := func(hop string, change func(*Path)) Path {
		p := Path{Prefix: prefix, NextHop: netip.MustParseAddr(hop), External: true, LocalPref: 100, PathLength: 1}
		if change != nil {
			change(&p)
		}
		return p
	}
	longer := func(p *Path) { p.PathLength = 2 }
	for name, tc := range map[string]struct {
		paths []Path
		want  string
		err   error
	}{
		"one":                 {[]Path{via("192.0.2.1", nil)}, "192.0.2.1", nil},
		"as good, sorted":     {[]Path{via("192.0.2.2", nil), via("192.0.2.1", nil)}, "192.0.2.1 192.0.2.2", nil},
		"longer waits":        {[]Path{via("192.0.2.2", nil), via("192.0.2.1", longer)}, "192.0.2.2", nil},
		"best is dead":        {[]Path{via("192.0.2.66", nil), via("192.0.2.1", longer)}, "192.0.2.1", nil},
		"one of two is dead":  {[]Path{via("192.0.2.66", nil), via("192.0.2.1", nil)}, "192.0.2.1", nil},
		"all are dead":        {[]Path{via("192.0.2.66", nil)}, "", dead},
		"iBGP is another":     {[]Path{via("192.0.2.2", nil), via("192.0.2.1", func(p *Path) { p.External = false })}, "192.0.2.2", nil},
		"one hop, told twice": {[]Path{via("192.0.2.2", nil), via("192.0.2.2", nil)}, "192.0.2.2", nil},
		"our own":             {[]Path{{Prefix: prefix, Local: true}, via("192.0.2.2", nil)}, "", errOwn},
		"none":                {nil, "", errNoPath},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := choose(prefix, tc.paths, resolve)
			var hops []string
			for _, h := range f.Hops {
				hops = append(hops, h.Gateway.String())
			}
			if got := strings.Join(hops, " "); got != tc.want || !errors.Is(err, tc.err) {
				t.Errorf("%q, %v; want %q, %v", got, err, tc.want, tc.err)
			}
		})
	}
}
