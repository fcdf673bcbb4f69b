package lan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// Options of an Announcer.
type Options struct {
	// HostNetNS is the path of the network namespace to work in; empty is the process's.
	HostNetNS string
	// NodeName is this node's in the Inputs.
	NodeName string
	// Interfaces are the links to announce on; empty: every link with the address' subnet.
	Interfaces []string
	// Subnets gets those of the links whenever they change, for AnnotationSubnets; may be
	// nil. It must not block.
	Subnets func([]netip.Prefix)
	// Silence is how long a standby hears nothing of an address before it steps in; 5 s when 0.
	Silence time.Duration
	// Log is slog.Default() when nil.
	Log *slog.Logger
}

// Announcer announces what Plan gives to this node. It is safe for concurrent use.
type Announcer struct {
	o      Options
	log    *slog.Logger
	ns     *linuxns.NS
	h      *netlink.Handle
	wake   chan struct{}
	counts counters

	mu     sync.Mutex
	inputs *Inputs // nil until they are known

	// Only Run's goroutine uses these.
	links   map[int]*link
	subnets []netip.Prefix
	told    bool // subnets, once
	bursts  map[spot]burst
	probes  map[spot]string // watched address → the node that should answer
	gone    map[station]bool
	asking  *time.Ticker
	failed  error // of the last run
}

// station is a node on a link.
type station struct {
	link int
	node string
}

// spot is an address on a link.
type spot struct {
	link int
	addr netip.Addr
}

// burst is what is still to be told of an address.
type burst struct {
	step int
	due  time.Time
}

// pauses between tellings of an address that has come here. Neighbours that learned of the
// address less than a second ago do not listen (locktime in arp(7)), and packets get lost.
var pauses = []time.Duration{0, 250 * time.Millisecond, time.Second, time.Second, 2 * time.Second}

const (
	settle     = 20 * time.Millisecond // events come in bursts
	fullScan   = time.Minute
	retryAfter = time.Second
	probeEvery = time.Second
)

// New opens the namespace; it sends nothing before Run.
func New(o Options) (*Announcer, error) {
	a := &Announcer{o: o, log: o.Log, wake: make(chan struct{}, 1), links: map[int]*link{}, bursts: map[spot]burst{}, probes: map[spot]string{}}
	if a.log == nil {
		a.log = slog.Default()
	}
	if o.Silence == 0 {
		a.o.Silence = 5 * time.Second
	}
	var err error
	if a.ns, err = linuxns.Open(o.HostNetNS); err != nil {
		return nil, err
	}
	if a.h, err = a.ns.Netlink(); err != nil {
		return nil, errors.Join(err, a.ns.Close())
	}
	return a, nil
}

// Set gives what Plan needs. The subnets of this node are what its links say. Nothing is
// announced before the first call.
func (a *Announcer) Set(in Inputs) {
	a.mu.Lock()
	a.inputs = &in
	a.mu.Unlock()
	a.kick()
}

func (a *Announcer) kick() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Run announces until ctx ends; then nobody answers here any more.
func (a *Announcer) Run(ctx context.Context) error {
	w, err := a.ns.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return err
	}
	inner, cancel := context.WithCancel(ctx)
	failed := make(chan error, 1)
	go func() { failed <- w.Run(inner, func(*syscall.NetlinkMessage) { a.kick() }) }()
	defer func() {
		cancel()
		w.Close()
		for _, l := range a.links {
			l.close()
		}
		a.counts.set(nil)
		a.h.Close()
		_ = a.ns.Close()
	}()
	tick := time.NewTicker(fullScan)
	defer tick.Stop()
	a.asking = time.NewTicker(probeEvery)
	defer a.asking.Stop()
	var again <-chan time.Time
	for run := true; ; {
		if a.sync(run) != nil {
			again = time.After(retryAfter)
		}
		select {
		case err := <-failed:
			return err
		case <-ctx.Done():
			<-failed
			return nil
		case <-a.wake:
			pause(ctx, settle)
			run = true
		case <-again:
			run = true
		case <-tick.C:
			run = true
		case <-a.burst():
			run = false
		case <-a.asking.C:
			run = a.ask()
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// sync makes one run: what is due to be told, before it, if that was asked for: links,
// plan, what is to be answered where.
func (a *Announcer) sync(whole bool) error {
	if !whole {
		a.tell()
		return nil
	}
	err := a.apply()
	a.tell()
	if err != nil && (a.failed == nil || a.failed.Error() != err.Error()) {
		a.log.Error("not all addresses of load balancers are announced", "error", err)
	}
	a.failed = err
	return err
}

func (a *Announcer) apply() error {
	links, own, err := findLinks(a.h, a.o.Interfaces)
	if err != nil {
		return err
	}
	a.publish(links)
	a.mu.Lock()
	in := a.inputs
	a.mu.Unlock()
	if in == nil {
		return nil
	}
	mine, watched := a.spread(Plan(a.withSelf(in)), links, own)
	var errs []error
	for index, l := range a.links {
		now := links[index]
		if now == nil || now.mac != l.mac || now.name != l.name || l.dead.Load() || len(mine[index])+len(watched[index]) == 0 {
			l.close()
			delete(a.links, index)
		}
	}
	for index, f := range links {
		if len(mine[index])+len(watched[index]) > 0 {
			errs = append(errs, a.serve(f, mine[index], watched[index]))
		}
	}
	for s := range a.bursts {
		if !mine[s.link][s.addr] {
			delete(a.bursts, s)
		}
	}
	a.count(links, mine)
	return errors.Join(errs...)
}

// publish tells the subnets of the links if they changed.
func (a *Announcer) publish(links map[int]*found) {
	var all []netip.Prefix
	for _, f := range links {
		all = append(all, f.subnets...)
	}
	slices.SortFunc(all, func(x, y netip.Prefix) int { return x.Compare(y) })
	all = slices.Compact(all)
	if a.told && slices.Equal(all, a.subnets) {
		return
	}
	a.subnets, a.told = all, true
	if a.o.Subnets != nil {
		a.o.Subnets(all)
	}
}

func (a *Announcer) withSelf(in *Inputs) Inputs {
	out := Inputs{Nodes: slices.Clone(in.Nodes), Services: in.Services}
	for i := range out.Nodes {
		if out.Nodes[i].Name == a.o.NodeName {
			out.Nodes[i].Subnets = a.subnets
		}
	}
	return out
}

// spread says by link which addresses are announced there and which are watched. own are
// the host's: the kernel answers for them.
func (a *Announcer) spread(plan []Address, links map[int]*found, own map[netip.Addr]bool) (mine, watched map[int]map[netip.Addr]bool) {
	mine, watched = map[int]map[netip.Addr]bool{}, map[int]map[netip.Addr]bool{}
	probes := map[spot]string{}
	asked := map[string]bool{} // link and node
	for i := range plan {
		p := &plan[i]
		if own[p.Addr] || p.Node != a.o.NodeName && p.Standby != a.o.NodeName {
			continue
		}
		for index, f := range links {
			if !f.holds(p.Addr) {
				continue
			}
			if p.Node == a.o.NodeName || a.gone[station{index, p.Node}] {
				put(mine, index, p.Addr)
			}
			// One address for each node, link and IP version tells whether its agent answers.
			key := fmt.Sprint(index, p.Addr.Is4(), p.Node)
			if p.Node != a.o.NodeName && !asked[key] {
				asked[key] = true
				put(watched, index, p.Addr)
				probes[spot{index, p.Addr}] = p.Node
			}
		}
	}
	if len(probes) == 0 {
		a.asking.Stop()
	} else if len(a.probes) == 0 {
		a.asking.Reset(probeEvery)
	}
	a.probes = probes
	return mine, watched
}

func put(m map[int]map[netip.Addr]bool, link int, a netip.Addr) {
	if m[link] == nil {
		m[link] = map[netip.Addr]bool{}
	}
	m[link][a] = true
}

// serve has a link answer for its addresses and tells of those that have come.
func (a *Announcer) serve(f *found, mine, watched map[netip.Addr]bool) error {
	l := a.links[f.index]
	back := l != nil && f.running && !l.running
	if l == nil {
		var err error
		if l, err = openLink(a.ns, f, &a.counts, a.kick); err != nil {
			return err
		}
		a.links[f.index] = l
	}
	l.running, l.subnets = f.running, f.subnets
	fresh, err := l.set(mine, watched)
	if back {
		l.forgive()
		fresh = fresh[:0]
		for addr := range mine {
			fresh = append(fresh, addr)
		}
	}
	for _, addr := range fresh {
		a.log.Info("announcing an address of a load balancer", "address", addr, "link", f.name)
		a.bursts[spot{f.index, addr}] = burst{due: time.Now()}
	}
	return err
}

// burst fires when the next telling is due; nil when there is none.
func (a *Announcer) burst() <-chan time.Time {
	var next time.Time
	for _, b := range a.bursts {
		if next.IsZero() || b.due.Before(next) {
			next = b.due
		}
	}
	if next.IsZero() {
		return nil
	}
	return time.After(time.Until(next))
}

// tell sends what is due.
func (a *Announcer) tell() {
	now := time.Now()
	for s, b := range a.bursts {
		l := a.links[s.link]
		if l == nil {
			delete(a.bursts, s)
			continue
		}
		if b.due.After(now) {
			continue
		}
		if err := l.tell(s.addr); err != nil {
			a.log.Debug("cannot tell of an address", "address", s.addr, "error", err)
		}
		if b.step++; b.step == len(pauses) {
			delete(a.bursts, s)
			continue
		}
		a.bursts[s] = burst{step: b.step, due: now.Add(pauses[b.step])}
	}
}

// ask asks for the watched addresses, and says whether a node has gone or come back: it is
// gone when it has not answered for the time of silence, in no IP version.
func (a *Announcer) ask() (changed bool) {
	gone := map[station]bool{}
	for s, node := range a.probes {
		l := a.links[s.link]
		if l == nil || !l.running {
			continue
		}
		where := station{s.link, node}
		silent, known := gone[where]
		gone[where] = (silent || !known) && l.silent(s.addr) >= a.o.Silence
		if err := l.ask(s.addr); err != nil {
			a.log.Debug("cannot ask for an address", "address", s.addr, "error", err)
		}
	}
	maps.DeleteFunc(gone, func(_ station, silent bool) bool { return !silent })
	for where := range gone {
		if !a.gone[where] {
			a.log.Warn("a node does not answer for its addresses of load balancers; announcing them here", "node", where.node)
		}
	}
	changed = !maps.Equal(gone, a.gone)
	a.gone = gone
	return changed
}

func (a *Announcer) count(links map[int]*found, mine map[int]map[netip.Addr]bool) {
	announced := map[string]int{}
	for index, f := range links {
		announced[f.name] = len(mine[index])
	}
	a.counts.set(announced)
}
