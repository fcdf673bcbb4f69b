package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"
)

// session is GoBGP as this node's state wants it. Only one goroutine may use it.
type session struct {
	s      *server.BgpServer
	cancel context.CancelFunc

	global   State // what cannot change while it runs
	restart  bool  // peers are told that this is a restart
	peers    map[netip.Addr]Peer
	keys     map[netip.Addr]string // passwords as they are in force
	routes   map[netip.Prefix]Route
	origin   []bgp.PathAttributeInterface // on every route
	attrs    State                        // of origin
	policy   []export
	families [2]bgp.Family
	ends     ends
}

// deferral is how long a restarted node waits for its peers' routes before it tells its own;
// the peers keep the old ones meanwhile.
const deferral = 5 * time.Second

// startSession starts GoBGP without peers. changed gets prefixes whose paths changed, nil
// for all; it must not block.
func startSession(ctx context.Context, state *State, restarting bool, log *slog.Logger, changed func([]netip.Prefix)) (*session, error) {
	level := &slog.LevelVar{}
	level.Set(slog.LevelWarn)
	if log.Enabled(ctx, slog.LevelDebug) {
		level.Set(slog.LevelDebug)
	}
	v := &session{
		s: server.NewBgpServer(server.LoggerOption(slog.New(quiet{log.Handler(), level}), level)), restart: restarting,
		global: *state, peers: map[netip.Addr]Peer{}, keys: map[netip.Addr]string{}, routes: map[netip.Prefix]Route{},
		families: [2]bgp.Family{bgp.RF_IPv4_UC, bgp.RF_IPv6_UC},
	}
	go v.s.Serve()
	port := int32(state.ListenPort)
	if port == 0 {
		port = -1
	}
	err := v.s.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn: state.ASN, RouterId: state.RouterID.String(), ListenPort: port, UseMultiplePaths: true,
	}})
	if err != nil {
		v.s.Stop()
		return nil, fmt.Errorf("start BGP on port %d: %w", state.ListenPort, err)
	}
	var inner context.Context
	inner, v.cancel = context.WithCancel(context.WithoutCancel(ctx))
	err = v.s.WatchEvent(inner, server.WatchEventMessageCallbacks{
		OnPathUpdate: func(paths []*apiutil.Path, _ time.Time) { changed(prefixesOf(paths)) },
		OnBestPath:   func(paths []*apiutil.Path, _ time.Time) { changed(prefixesOf(paths)) },
		OnPathEor:    func(p *apiutil.Path, _ time.Time) { v.ends.marker(p); changed([]netip.Prefix{}) },
		OnPeerUpdate: func(p *apiutil.WatchEventMessage_PeerEvent, _ time.Time) { v.ends.peer(p); changed(nil) },
	}, server.WatchBestPath(false), server.WatchPostUpdate(false, "", ""), server.WatchEor(false), server.WatchPeer())
	if err != nil {
		v.stop(false)
		return nil, fmt.Errorf("watch BGP: %w", err)
	}
	return v, nil
}

// quiet passes on a library's messages from a level of its own on.
type quiet struct {
	slog.Handler
	level slog.Leveler
}

// Enabled implements slog.Handler.
func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= q.level.Level() && q.Handler.Enabled(ctx, l)
}

func prefixesOf(paths []*apiutil.Path) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(paths))
	for _, p := range paths {
		if nlri, ok := p.Nlri.(*bgp.IPAddrPrefix); ok {
			out = append(out, nlri.Prefix)
		}
	}
	return out
}

// stop ends it. With goodbye peers are told and forget the routes at once; without they
// keep them for the restart time.
func (v *session) stop(goodbye bool) {
	if v.cancel != nil {
		v.cancel()
	}
	if goodbye {
		_ = v.s.DeletePath(apiutil.DeletePathRequest{DeleteAll: true})
		time.Sleep(goodbyeTime) // GoBGP does not say when an update has left
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = v.s.StopBgp(ctx, &api.StopBgpRequest{AllowGracefulRestart: !goodbye})
}

// goodbyeTime lets peers move traffic away before sessions close.
const goodbyeTime = 500 * time.Millisecond

// needsRestart says whether something changed that is the server's as a whole.
func (v *session) needsRestart(s *State) bool {
	g := &v.global
	return g.ASN != s.ASN || g.RouterID != s.RouterID || g.ListenPort != s.ListenPort || g.RestartTime != s.RestartTime
}

// apply changes what differs: told routes, how they are told, sessions.
func (v *session) apply(ctx context.Context, s *State) error {
	errs := []error{v.applyPolicy(ctx, s), v.applyRoutes(s)}
	want := map[netip.Addr]bool{}
	for _, p := range s.Peers {
		want[p.Address] = true
	}
	for a := range v.peers {
		if !want[a] {
			errs = append(errs, v.remove(ctx, a))
		}
	}
	for _, p := range s.Peers {
		errs = append(errs, v.applyPeer(ctx, p))
	}
	return errors.Join(errs...)
}

// applyPeer makes one session as wanted. A peer that differs only in what its routes carry
// is not touched.
func (v *session) applyPeer(ctx context.Context, p Peer) error {
	key, err := readPassword(p.PasswordFile)
	if err != nil {
		return fmt.Errorf("peer %s: %w", p.Name, err)
	}
	old, there := v.peers[p.Address]
	bare := func(p Peer) Peer { p.Name, p.Communities, p.LocalPref = "", "", 0; return p }
	if there && bare(old) == bare(p) && v.keys[p.Address] == key {
		v.peers[p.Address] = p
		return nil
	}
	if there && !updatable(bare(old), bare(p)) {
		if err := v.remove(ctx, p.Address); err != nil {
			return err
		}
		there = false
	}
	message := v.message(p, key)
	if there {
		_, err = v.s.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: message})
	} else {
		err = v.s.AddPeer(ctx, &api.AddPeerRequest{Peer: message})
	}
	if err != nil {
		return fmt.Errorf("set BGP peer %s: %w", p.Name, err)
	}
	v.peers[p.Address], v.keys[p.Address] = p, key
	if there && old.MaxPrefixes != p.MaxPrefixes {
		return v.reopen(ctx, p.Address)
	}
	return nil
}

// reopen lets sessions that the prefix limit closed come up again; an invalid address is
// all of them.
func (v *session) reopen(ctx context.Context, only netip.Addr) error {
	var closed []string
	err := v.s.ListPeer(ctx, &api.ListPeerRequest{}, func(p *api.Peer) {
		address := p.GetConf().GetNeighborAddress()
		if p.GetState().GetAdminState() == api.PeerState_ADMIN_STATE_PFX_CT && (!only.IsValid() || address == only.String()) {
			closed = append(closed, address)
		}
	})
	for _, address := range closed {
		if e := v.s.EnablePeer(ctx, &api.EnablePeerRequest{Address: address}); e != nil {
			err = errors.Join(err, fmt.Errorf("open the session with BGP peer %s again: %w", address, e))
		}
	}
	return err
}

// updatable says whether GoBGP notices the difference itself: UpdatePeer (v4.8.0) compares
// nothing of route reflection.
func updatable(old, now Peer) bool {
	return old.ReflectorClient == now.ReflectorClient && old.ClusterID == now.ClusterID && old.Port == now.Port
}

func (v *session) remove(ctx context.Context, a netip.Addr) error {
	p := v.peers[a]
	if v.keys[a] != "" {
		// DeletePeer would leave the key with the listening socket.
		if _, err := v.s.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: v.message(p, "")}); err != nil {
			return fmt.Errorf("remove password of BGP peer %s: %w", p.Name, err)
		}
	}
	if err := v.s.DeletePeer(ctx, &api.DeletePeerRequest{Address: a.String()}); err != nil {
		return fmt.Errorf("remove BGP peer %s: %w", p.Name, err)
	}
	delete(v.peers, a)
	delete(v.keys, a)
	return nil
}

// message is the peer in GoBGP's terms.
func (v *session) message(p Peer, key string) *api.Peer {
	restart := uint32(v.global.RestartTime / time.Second)
	m := &api.Peer{
		Conf: &api.PeerConf{NeighborAddress: p.Address.String(), PeerAsn: p.ASN, Description: p.Name, AuthPassword: key},
		Timers: &api.Timers{Config: &api.TimersConfig{
			HoldTime: uint64(p.HoldTime / time.Second), KeepaliveInterval: uint64(p.KeepAlive / time.Second),
			ConnectRetry: uint64(p.ConnectTime / time.Second), IdleHoldTimeAfterReset: uint64(p.ConnectTime / time.Second),
		}},
		Transport:    &api.Transport{PassiveMode: p.Passive, RemotePort: uint32(p.Port)},
		TtlSecurity:  &api.TtlSecurity{Enabled: p.TTLSecurity, TtlMin: 255},
		EbgpMultihop: &api.EbgpMultihop{Enabled: p.Multihop > 0, MultihopTtl: uint32(p.Multihop)},
		GracefulRestart: &api.GracefulRestart{
			Enabled: restart > 0, RestartTime: restart, DeferralTime: uint32(deferral / time.Second), LocalRestarting: v.restart,
		},
	}
	if p.Source.IsValid() {
		m.Transport.LocalAddress = p.Source.String()
	}
	if p.ReflectorClient {
		m.RouteReflector = &api.RouteReflector{RouteReflectorClient: true}
		if p.ClusterID.IsValid() {
			m.RouteReflector.RouteReflectorClusterId = p.ClusterID.String()
		}
	}
	for i, on := range []bool{p.IPv4, p.IPv6} {
		if !on {
			continue
		}
		family := &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
		if i == 1 {
			family.Afi = api.Family_AFI_IP6
		}
		m.AfiSafis = append(m.AfiSafis, &api.AfiSafi{
			Config:            &api.AfiSafiConfig{Family: family, Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: restart > 0}},
			PrefixLimits:      &api.PrefixLimit{Family: family, MaxPrefixes: uint32(p.MaxPrefixes), ShutdownThresholdPct: 80},
		})
	}
	return m
}

// applyRoutes tells and takes back what differs.
func (v *session) applyRoutes(s *State) error {
	if !slices.Equal(v.attrs.Communities, s.Communities) || v.attrs.LocalPref != s.LocalPref || v.origin == nil {
		origin, err := attributes(s)
		if err != nil {
			return err
		}
		v.origin, v.attrs = origin, *s
		clear(v.routes) // told again: peers see an update, not a withdrawal
	}
	want := map[netip.Prefix]Route{}
	var add, gone []*apiutil.Path
	for _, r := range s.Routes {
		want[r.Prefix] = r
		if old, ok := v.routes[r.Prefix]; !ok || old.NextHop != r.NextHop {
			p, err := v.path(r)
			if err != nil {
				return err
			}
			add = append(add, p)
		}
	}
	for prefix, r := range v.routes {
		if _, ok := want[prefix]; !ok {
			p, err := v.path(r)
			if err != nil {
				return err
			}
			gone = append(gone, p)
		}
	}
	if len(add) > 0 {
		if _, err := v.s.AddPath(apiutil.AddPathRequest{Paths: add}); err != nil {
			return fmt.Errorf("tell %d routes: %w", len(add), err)
		}
	}
	if len(gone) > 0 {
		if err := v.s.DeletePath(apiutil.DeletePathRequest{Paths: gone}); err != nil {
			return fmt.Errorf("take back %d routes: %w", len(gone), err)
		}
	}
	v.routes = want
	return nil
}

func (v *session) path(r Route) (*apiutil.Path, error) {
	nlri, err := bgp.NewIPAddrPrefix(r.Prefix)
	if err != nil {
		return nil, fmt.Errorf("route %s: %w", r.Prefix, err)
	}
	p := &apiutil.Path{Nlri: nlri, Family: v.families[0], Attrs: slices.Clone(v.origin), Age: time.Now().Unix()}
	var hop bgp.PathAttributeInterface
	if r.Prefix.Addr().Is4() {
		hop, err = bgp.NewPathAttributeNextHop(netip.IPv4Unspecified())
	} else {
		p.Family = v.families[1]
		via := netip.IPv6Unspecified()
		if r.NextHop.IsValid() {
			via = r.NextHop
		}
		hop, err = bgp.NewPathAttributeMpReachNLRI(p.Family, []bgp.PathNLRI{{NLRI: nlri}}, via)
	}
	if err != nil {
		return nil, fmt.Errorf("route %s: %w", r.Prefix, err)
	}
	p.Attrs = append(p.Attrs, hop)
	return p, nil
}
