package bgp

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// wellKnown are communities with names (RFC 1997, 3765, 7999, 8326).
var wellKnown = map[string]uint32{
	"no-export": 0xffffff01, "no-advertise": 0xffffff02, "local-as": 0xffffff03, "no-peer": 0xffffff04,
	"graceful-shutdown": 0xffff0000, "blackhole": 0xffff029a,
}

// communities sorts texts into those of RFC 1997 and the large ones of RFC 8092.
func communities(texts []string) (small []uint32, large []*bgp.LargeCommunity, err error) {
	for _, text := range texts {
		if n, ok := wellKnown[text]; ok {
			small = append(small, n)
			continue
		}
		var n [3]uint64
		parts := strings.Split(text, ":")
		for i, part := range parts {
			if n[min(i, 2)], err = strconv.ParseUint(part, 10, 32); err != nil {
				return nil, nil, fmt.Errorf("read community %q: %w", text, err)
			}
		}
		if len(parts) == 2 {
			small = append(small, uint32(n[0]<<16|n[1]&0xffff))
		} else {
			large = append(large, bgp.NewLargeCommunity(uint32(n[0]), uint32(n[1]), uint32(n[2])))
		}
	}
	return small, large, nil
}

// attributes are those of every route that the node tells.
func attributes(s *State) ([]bgp.PathAttributeInterface, error) {
	out := []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(0)}
	small, large, err := communities(s.Communities)
	if err != nil {
		return nil, err
	}
	if len(small) > 0 {
		out = append(out, bgp.NewPathAttributeCommunities(small))
	}
	if len(large) > 0 {
		out = append(out, bgp.NewPathAttributeLargeCommunities(large))
	}
	if s.LocalPref > 0 {
		out = append(out, bgp.NewPathAttributeLocalPref(s.LocalPref))
	}
	return out, nil
}

// export is what one peer's routes carry besides.
type export struct {
	address     netip.Addr
	communities string
	localPref   uint32
	reflect     bool // others' routes are passed on as well
}

// exports are the peers that differ from the rule: own routes only, as they are. A node
// reflects routes to and from its clients; it never passes on what it has from eBGP peers.
func exports(s *State) (out []export) {
	reflector := slices.ContainsFunc(s.Peers, func(p Peer) bool { return p.ReflectorClient })
	for _, p := range s.Peers {
		e := export{p.Address, p.Communities, p.LocalPref, reflector && p.ASN == s.ASN}
		if e.communities != "" || e.localPref > 0 || e.reflect {
			out = append(out, e)
		}
	}
	return out
}

// applyPolicy changes how routes are told; sessions stay, changed routes are told again.
func (v *session) applyPolicy(ctx context.Context, s *State) error {
	now := exports(s)
	if v.policy != nil && slices.Equal(v.policy, now) {
		return nil
	}
	first := v.policy == nil
	policy, sets, err := exportPolicy(now)
	if err != nil {
		return err
	}
	if err := v.s.SetPolicies(ctx, &api.SetPoliciesRequest{Policies: []*api.Policy{policy}, DefinedSets: sets}); err != nil {
		return fmt.Errorf("set BGP export policy: %w", err)
	}
	if first {
		err := v.s.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
			Direction: api.PolicyDirection_POLICY_DIRECTION_EXPORT, Policies: []*api.Policy{policy}, DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT,
		}})
		if err != nil {
			return fmt.Errorf("assign BGP export policy: %w", err)
		}
	} else if len(v.peers) > 0 {
		if err := v.s.ResetPeer(ctx, &api.ResetPeerRequest{Address: "all", Soft: true, Direction: api.ResetPeerRequest_DIRECTION_OUT}); err != nil {
			return fmt.Errorf("tell routes again: %w", err)
		}
	}
	if v.policy = now; now == nil {
		v.policy = []export{}
	}
	return nil
}

// exportPolicy accepts own routes, with each peer's extras, and reflected ones.
func exportPolicy(list []export) (*api.Policy, []*api.DefinedSet, error) {
	policy := &api.Policy{Name: "told"}
	var sets []*api.DefinedSet
	for _, e := range list {
		set := "peer-" + e.address.String()
		sets = append(sets, &api.DefinedSet{
			DefinedType: api.DefinedType_DEFINED_TYPE_NEIGHBOR, Name: set,
			List: []string{netip.PrefixFrom(e.address, e.address.BitLen()).String()},
		})
		neighbour := &api.MatchSet{Name: set, Type: api.MatchSet_TYPE_ANY}
		actions := &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT}
		small, large, err := communities(strings.Fields(e.communities))
		if err != nil {
			return nil, nil, err
		}
		for _, c := range small {
			actions.Community = addCommunity(actions.Community, fmt.Sprintf("%d:%d", c>>16, c&0xffff))
		}
		for _, c := range large {
			actions.LargeCommunity = addCommunity(actions.LargeCommunity, c.String())
		}
		if e.localPref > 0 {
			actions.LocalPref = &api.LocalPrefAction{Value: e.localPref}
		}
		policy.Statements = append(policy.Statements, &api.Statement{
			Name: "own-" + set, Actions: actions,
			Conditions: &api.Conditions{NeighborSet: neighbour, RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		})
		if e.reflect {
			policy.Statements = append(policy.Statements, &api.Statement{
				Name: "reflect-" + set, Actions: &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT},
				Conditions: &api.Conditions{NeighborSet: neighbour, RouteType: api.Conditions_ROUTE_TYPE_INTERNAL},
			})
		}
	}
	policy.Statements = append(policy.Statements, &api.Statement{
		Name: "own", Actions: &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT},
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
	})
	return policy, sets, nil
}

func addCommunity(a *api.CommunityAction, text string) *api.CommunityAction {
	if a == nil {
		a = &api.CommunityAction{Type: api.CommunityAction_TYPE_ADD}
	}
	a.Communities = append(a.Communities, text)
	return a
}
