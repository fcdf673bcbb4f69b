package bgp

import (
	"net/netip"
	"testing"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

func TestEndOfRIBIsOfItsSession(t *testing.T) {
	one, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	var e ends
	e.marker(&apiutil.Path{PeerAddress: one, Family: bgp.RF_IPv4_UC})
	e.marker(&apiutil.Path{PeerAddress: other, Family: bgp.RF_IPv6_UC})
	if !e.of(one, bgp.RF_IPv4_UC) || e.of(one, bgp.RF_IPv6_UC) || e.of(other, bgp.RF_IPv4_UC) || !e.of(other, bgp.RF_IPv6_UC) {
		t.Errorf("markers %v", e.came)
	}
	now := func(state bgp.FSMState) {
		e.peer(&apiutil.WatchEventMessage_PeerEvent{Peer: apiutil.Peer{State: apiutil.PeerState{NeighborAddress: one, SessionState: state}}})
	}
	now(bgp.BGP_FSM_ESTABLISHED)
	if !e.of(one, bgp.RF_IPv4_UC) {
		t.Error("a session that stands has lost its marker")
	}
	now(bgp.BGP_FSM_IDLE)
	if e.of(one, bgp.RF_IPv4_UC) || !e.of(other, bgp.RF_IPv6_UC) {
		t.Errorf("after the end of a session: %v", e.came)
	}
}
