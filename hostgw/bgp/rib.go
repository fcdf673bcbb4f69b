package bgp

import (
	"fmt"
	"net/netip"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// rib lists the paths to the given prefixes (nil: all) in the order of preference.
func (v *session) rib(only map[netip.Prefix]bool) (map[netip.Prefix][]Path, error) {
	out := map[netip.Prefix][]Path{}
	for i, family := range v.families {
		var lookup []*apiutil.LookupPrefix
		for p := range only {
			if p.Addr().Is4() == (i == 0) {
				lookup = append(lookup, &apiutil.LookupPrefix{Prefix: p.String()})
			}
		}
		if only != nil && len(lookup) == 0 {
			continue
		}
		req := apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_GLOBAL, Family: family, Prefixes: lookup}
		err := v.s.ListPath(req, func(nlri bgp.NLRI, paths []*apiutil.Path) {
			if n, ok := nlri.(*bgp.IPAddrPrefix); ok {
				for _, p := range paths {
					out[n.Prefix] = append(out[n.Prefix], v.toPath(n.Prefix, p))
				}
			}
		})
		if err != nil {
			return nil, fmt.Errorf("list BGP routes: %w", err)
		}
	}
	return out, nil
}

func (v *session) toPath(prefix netip.Prefix, p *apiutil.Path) Path {
	out := Path{
		Prefix: prefix, From: p.PeerAddress, Local: !p.PeerAddress.IsValid(), External: p.PeerASN != v.global.ASN, Stale: p.Stale, LocalPref: 100,
	}
	for _, a := range p.Attrs {
		switch a := a.(type) {
		case *bgp.PathAttributeNextHop:
			out.NextHop = a.Value
		case *bgp.PathAttributeMpReachNLRI:
			out.NextHop = a.Nexthop
			if a.LinkLocalNexthop.IsValid() && !a.Nexthop.IsGlobalUnicast() {
				out.NextHop = a.LinkLocalNexthop
			}
		case *bgp.PathAttributeLocalPref:
			out.LocalPref = a.Value
		case *bgp.PathAttributeMultiExitDisc:
			out.MED = a.Value
		case *bgp.PathAttributeOrigin:
			out.Origin = a.Value
		case *bgp.PathAttributeAsPath:
			out.ASPath = bgp.AsPathString(a)
			for _, part := range a.Value {
				out.PathLength += part.ASLen()
			}
		}
	}
	return out
}
