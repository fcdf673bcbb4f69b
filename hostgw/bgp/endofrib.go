package bgp

import (
	"context"
	"net/netip"
	"sync"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// ends are the End-of-RIB markers that came in the present sessions. GoBGP's own word for it,
// EndOfRibReceived, is not that: of a router that has started lately itself (RFC 4724, 3: its
// Restart State bit) it is set before anything has come (v4.8.0, fsm.go).
type ends struct {
	mu   sync.Mutex
	came map[netip.Addr]map[bgp.Family]bool
}

// marker notes an End-of-RIB.
func (e *ends) marker(p *apiutil.Path) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.came == nil {
		e.came = map[netip.Addr]map[bgp.Family]bool{}
	}
	if e.came[p.PeerAddress] == nil {
		e.came[p.PeerAddress] = map[bgp.Family]bool{}
	}
	e.came[p.PeerAddress][p.Family] = true
}

// peer forgets a session that is not there any more.
func (e *ends) peer(p *apiutil.WatchEventMessage_PeerEvent) {
	if state := p.Peer.State; state.SessionState != bgp.BGP_FSM_ESTABLISHED {
		e.mu.Lock()
		delete(e.came, state.NeighborAddress)
		e.mu.Unlock()
	}
}

// of says whether the marker of a family has come.
func (e *ends) of(peer netip.Addr, family bgp.Family) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.came[peer][family]
}

// allTold says whether every peer is there and has told everything since this start as far as
// is known. marked says that each has said so: peers without graceful restart need not.
func (v *session) allTold() (told, marked bool) {
	told, marked = true, true
	_ = v.s.ListPeer(context.Background(), &api.ListPeerRequest{}, func(p *api.Peer) {
		if p.GetState().GetSessionState() != api.PeerState_SESSION_STATE_ESTABLISHED {
			told = false
			return
		}
		address, _ := netip.ParseAddr(p.GetConf().GetNeighborAddress())
		for _, f := range p.AfiSafis {
			family := f.GetConfig().GetFamily()
			if v.ends.of(address, bgp.NewFamily(uint16(family.GetAfi()), uint8(family.GetSafi()))) {
				continue
			}
			marked = false
			if f.GetMpGracefulRestart().GetState().GetReceived() {
				told = false
			}
		}
	})
	return told, told && marked
}
