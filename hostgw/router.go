package hostgw

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/nft"
)

// Options of a Router.
type Options struct {
	// HostNetNS is the path of the network namespace to work in; empty is the
	// process's own.
	HostNetNS string
	// NodeName is this node's, as its peers know it; needed for encapsulation.
	NodeName string
	// Encapsulation is EncapNever when empty.
	Encapsulation Encapsulation
	// VXLANPort is DefaultVXLANPort when 0; the same on all nodes.
	VXLANPort int
	// Tunnels encrypt what goes to other nodes' pods; may be nil.
	Tunnels Tunnels
	// Log is slog.Default() when nil.
	Log *slog.Logger
}

// overlay checks what the options say about encapsulation.
func (o Options) overlay() (overlay, error) {
	v := overlay{mode: o.Encapsulation, port: o.VXLANPort, mac: vtepMAC(o.NodeName)}
	if v.port == 0 {
		v.port = DefaultVXLANPort
	}
	switch o.Encapsulation {
	case "", EncapNever:
	case EncapCrossSubnet, EncapAlways:
		if o.NodeName == "" {
			return v, errors.New("encapsulation needs the node's name")
		}
	default:
		return v, fmt.Errorf("encapsulation %q is none of %s, %s, %s", o.Encapsulation, EncapNever, EncapCrossSubnet, EncapAlways)
	}
	return v, nil
}

// PeerStatus says how one peer is reached.
type PeerStatus struct {
	Name   string
	Routes []netip.Prefix // podCIDRs with a route in the kernel
	Err    error          // why others have none; nil when all have
}

// Router owns the routes with RouteProtocol. It is safe for concurrent use.
type Router struct {
	ns      *linuxns.NS
	k       kernel
	over    overlay
	door    filter
	tunnels Tunnels // may be nil
	log     *slog.Logger
	wake    chan struct{} // somebody told us
	last    *plan         // in the kernel if nothing has happened there; Run only
	soon    time.Duration // when Tunnels want to be asked again, 0 is never; Run only

	mu     sync.Mutex
	told   bool // SetPeers was called
	self   []netip.Prefix
	peers  []Peer
	events event
	have   map[netip.Prefix]route // ours in the kernel, as far as we know
	links  map[int]bool           // that have leaves by
	hops   map[netip.Addr]answer  // lookups since the last event
	status map[string]PeerStatus
	synced error // of the last run
}

type answer struct {
	hop
	err error
}

// New opens the namespace. It changes nothing; Run does.
func New(o Options) (*Router, error) {
	r := &Router{log: o.Log, tunnels: o.Tunnels, wake: make(chan struct{}, 1), hops: map[netip.Addr]answer{}, synced: errors.New("the peers are not known yet")}
	if r.log == nil {
		r.log = slog.Default()
	}
	var err error
	if r.over, err = o.overlay(); err != nil {
		return nil, err
	}
	if r.ns, err = linuxns.Open(o.HostNetNS); err != nil {
		return nil, err
	}
	r.door.conn = nft.New(r.ns.FD(), filterTable, nft.SmallBuffer)
	if r.k.h, err = r.ns.Netlink(); err != nil {
		return nil, errors.Join(err, r.ns.Close())
	}
	return r, nil
}

// Close releases sockets and descriptors; call it after Run. Routes stay.
func (r *Router) Close() {
	r.k.h.Close()
	r.door.close()
	if r.tunnels != nil {
		r.tunnels.Close()
	}
	_ = r.ns.Close()
}

// SetPeers gives all other nodes; until the first call nothing is changed in the
// kernel, so do not call it before all Nodes are listed. The slice belongs to r then.
func (r *Router) SetPeers(peers []Peer) {
	r.mu.Lock()
	r.peers, r.told = peers, true
	r.mu.Unlock()
	r.kick()
}

// SetSelf gives this node's own podCIDRs: what no pod has is unreachable instead of
// going round between here and the default gateway.
func (r *Router) SetSelf(podCIDRs []netip.Prefix) {
	r.mu.Lock()
	r.self = slices.Clone(podCIDRs)
	r.mu.Unlock()
	r.kick()
}

// Ready is nil when the last run left the kernel as planned. Peers that cannot have a
// route do not count; Status tells of them.
func (r *Router) Ready() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.synced
}

// Status lists all peers by name.
func (r *Router) Status() []PeerStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Values(r.status), func(a, b PeerStatus) int { return strings.Compare(a.Name, b.Name) })
}

func (r *Router) kick() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

const (
	settle   = 20 * time.Millisecond // events come in bursts
	fullScan = time.Minute
	retryMin = time.Second
	retryMax = 30 * time.Second
)

// Run keeps the routes until ctx ends, and leaves them then. It returns an error only
// when it cannot listen to the kernel.
func (r *Router) Run(ctx context.Context) error {
	w, err := r.ns.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return err
	}
	tables, err := r.ns.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		w.Close()
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	heard, failed := make(chan struct{}, 1), make(chan error, 2)
	go func() { failed <- w.Run(ctx, func(msg *syscall.NetlinkMessage) { r.onEvent(msg, heard) }) }()
	go func() { failed <- tables.Run(ctx, func(msg *syscall.NetlinkMessage) { r.onTable(msg, heard) }) }()
	defer func() {
		cancel()
		<-failed // the other one
		w.Close()
		tables.Close()
	}()
	tick := time.NewTicker(fullScan)
	defer tick.Stop()
	retry := retryMin
	r.note(eventAll)
	for {
		var again <-chan time.Time
		err := r.sync()
		if r.soon > 0 {
			again = time.After(r.soon)
		}
		if err != nil {
			again = time.After(retry)
			retry = min(2*retry, retryMax)
			r.note(eventAll)
		} else {
			retry = retryMin
		}
		select {
		case err := <-failed: // also when ctx ended
			return err
		case <-r.wake:
		case <-again:
		case <-tick.C:
			r.note(eventAll)
		case <-heard:
			pause(ctx, settle)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// sync makes one run: wanted, kernel, difference, apply.
func (r *Router) sync() error {
	r.mu.Lock()
	if !r.told {
		r.mu.Unlock()
		return nil
	}
	peers, self, e := r.peers, r.self, r.events
	r.events = eventNone
	if e >= eventLookup {
		clear(r.hops)
	}
	r.mu.Unlock()

	err := r.run(peers, self, e)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && (r.synced == nil || r.synced.Error() != err.Error()) {
		r.log.Error("routes to other nodes are not all in place", "error", err)
	}
	r.synced = err
	return err
}

func (r *Router) run(peers []Peer, self []netip.Prefix, e event) error {
	subnets, err := r.k.subnets()
	if err != nil {
		return err
	}
	in := inputs{peers: peers, self: self, subnets: subnets, encap: r.over.mode, lookup: r.lookup}
	tunnelErr := r.prepareTunnels(&in, e == eventAll)
	before := r.last
	if r.last = nil; before != nil && e == eventNone && !r.encrypts() {
		if t, ok := before.advance(in); ok {
			r.last = before
			return errors.Join(tunnelErr, r.runSome(before, t))
		}
	}
	p := makePlan(in)
	if err = errors.Join(tunnelErr, r.runAll(p, e == eventAll)); err == nil {
		r.last = p
	}
	return err
}

// runSome takes over what changed of a plan that was in place.
func (r *Router) runSome(p *plan, t touched) error {
	var d difference
	for dst := range t.dsts {
		d.compare(dst, p.routes, r.have)
	}
	err := r.apply(p, d, r.have)
	r.reportSome(t, p)
	return err
}

func (r *Router) runAll(p *plan, dump bool) (err error) {
	overlayErr := errors.Join(r.guard(p, dump), r.prepareOverlay(p))
	if overlayErr != nil {
		p.dropEncapsulated(overlayErr)
	}
	var extra []route
	have := r.have
	if dump || have == nil {
		if have, extra, err = r.k.routes(); err != nil {
			return err
		}
	}
	err = errors.Join(overlayErr, r.apply(p, diff(p.routes, have, extra), have))
	r.report(p)
	if len(p.underlay) == 0 && err == nil {
		err = r.k.removeOverlay()
	}
	return err
}

// lookup asks the kernel once for each address between two events.
func (r *Router) lookup(a netip.Addr) (hop, error) {
	r.mu.Lock()
	got, ok := r.hops[a]
	r.mu.Unlock()
	if !ok {
		got.hop, got.err = r.k.lookup(a)
		r.mu.Lock()
		r.hops[a] = got
		r.mu.Unlock()
	}
	return got.hop, got.err
}
