package bgp

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/osrg/gobgp/v4/api"
)

// Status is what a Speaker does, for people and metrics.
type Status struct {
	ASN        uint32     `json:"asn"`
	RouterID   netip.Addr `json:"routerID"`
	Withdrawn  bool       `json:"withdrawn"`  // by the administrator, on this node
	Restarting bool       `json:"restarting"` // routes of before a restart are still kept
	Peers      []PeerStatus
	Told       []Route
	Received   []Received
	Problems   []string
	// Error is what did not work in the last run; it is tried again.
	Error string
}

// PeerStatus is one session's.
type PeerStatus struct {
	Name    string
	Address netip.Addr
	ASN     uint32
	// State is RFC 4271's, in lower case; "prefix-limit" when the peer sent too much.
	State string
	// Since is when the session came up or went down last.
	Since time.Time
	// Accepted counts what the peer tells, Advertised what it is told.
	Accepted, Advertised uint64
	// Reason is why the session went down last.
	Reason string
}

// Up says whether the session is established.
func (p *PeerStatus) Up() bool { return p.State == "established" }

// Received is one prefix that peers told.
type Received struct {
	Prefix netip.Prefix
	Paths  []Path
	// Hops are in the kernel; Refused is why there are none.
	Hops    []Hop
	Refused string
}

// Status waits until the Speaker answers; Run must be running.
func (s *Speaker) Status(ctx context.Context) (Status, error) {
	reply := make(chan Status, 1)
	select {
	case s.ask <- reply:
		return <-reply, nil
	case <-ctx.Done():
		return Status{}, context.Cause(ctx)
	case <-s.done:
		return Status{}, errors.New("BGP does not run")
	}
}

// status is Status in Run's goroutine.
func (s *Speaker) status() Status {
	st := Status{ASN: s.state.ASN, RouterID: s.state.RouterID, Told: s.state.Routes, Restarting: !s.settled && s.server != nil}
	s.mu.Lock()
	st.Withdrawn = s.fixed
	s.mu.Unlock()
	for _, p := range s.state.Problems {
		st.Problems = append(st.Problems, p.String())
	}
	if s.failed != nil {
		st.Error = s.failed.Error()
	}
	if s.server != nil {
		st.Peers = s.server.status()
	}
	for _, prefix := range sortedKeys(s.rib) {
		r := Received{Prefix: prefix}
		for _, p := range s.rib[prefix] {
			if !p.Local {
				r.Paths = append(r.Paths, p)
			}
		}
		if len(r.Paths) == 0 {
			continue
		}
		r.Hops = s.have[prefix].Hops
		if err := s.refused[prefix]; err != nil {
			r.Refused = err.Error()
		}
		st.Received = append(st.Received, r)
	}
	return st
}

// status lists the sessions by address.
func (v *session) status() (out []PeerStatus) {
	_ = v.s.ListPeer(context.Background(), &api.ListPeerRequest{EnableAdvertised: true}, func(p *api.Peer) {
		a, _ := netip.ParseAddr(p.GetConf().GetNeighborAddress())
		st := PeerStatus{
			Name: v.peers[a].Name, Address: a, ASN: p.GetConf().GetPeerAsn(),
			State:  strings.ToLower(strings.TrimPrefix(p.GetState().GetSessionState().String(), "SESSION_STATE_")),
			Reason: p.GetState().GetDisconnectMessage(),
		}
		if p.GetState().GetAdminState() == api.PeerState_ADMIN_STATE_PFX_CT {
			st.State = "prefix-limit"
		}
		since := p.GetTimers().GetState().GetDowntime()
		if st.Up() {
			since = p.GetTimers().GetState().GetUptime()
		}
		if since.IsValid() && since.AsTime().Unix() > 0 {
			st.Since = since.AsTime()
		}
		for _, f := range p.AfiSafis {
			st.Accepted += f.GetState().GetAccepted()
			st.Advertised += f.GetState().GetAdvertised()
		}
		out = append(out, st)
	})
	slices.SortFunc(out, func(a, b PeerStatus) int { return a.Address.Compare(b.Address) })
	return out
}
