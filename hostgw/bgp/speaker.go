package bgp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// Options of a Speaker.
type Options struct {
	// Dir holds what must survive the agent but not a reboot; made if it is missing.
	Dir string
	// Install puts received routes into the kernel.
	Install bool
	// Leave says, when Run ends, whether the node goes for long: then everything is
	// withdrawn. nil is no: peers keep the routes for the restart time.
	Leave func() bool
	// Reopen is how often sessions that the prefix limit closed are tried again; 5 minutes
	// when 0.
	Reopen time.Duration
	// Problems gets what of the input cannot be used, whenever that changes; may be nil.
	Problems func([]Problem)
	// Log is slog.Default() when nil.
	Log *slog.Logger
}

// Speaker makes a node's BGP so. It is safe for concurrent use. It works in the network
// namespace of the process.
type Speaker struct {
	o    Options
	log  *slog.Logger
	ns   *linuxns.NS
	wake chan struct{}
	ask  chan chan Status
	done chan struct{} // Run has ended

	mu     sync.Mutex
	inputs *Inputs // nil until they are known
	fixed  bool    // the administrator's withdrawal, see Withdraw
	heard  event   // since the last run
	dirty  map[netip.Prefix]bool

	// Only Run's goroutine uses these.
	k          kernel
	server     *session
	state      State
	rib        map[netip.Prefix][]Path
	want, have map[netip.Prefix]FIB
	refused    map[netip.Prefix]error
	subnets    []netip.Prefix
	settled    bool      // stale routes of before may go
	toldSince  time.Time // all peers have told everything as far as is known; zero: they have not
	started    time.Time
	failed     error  // of the last run
	saved      []byte // the inputs as they are in the file

	seen struct { // of the kernel, for judging its messages
		sync.Mutex
		ours  map[netip.Prefix]FIB
		links map[int]bool
		hops  map[netip.Addr]answer
	}
}

type answer struct {
	hop Hop
	err error
}

// event is what happened since the last run.
type event struct{ plan, rib, kernel bool }

// New makes a Speaker; it changes nothing before Run.
func New(o Options) (*Speaker, error) {
	s := &Speaker{o: o, log: o.Log, wake: make(chan struct{}, 1), ask: make(chan chan Status), done: make(chan struct{}), dirty: map[netip.Prefix]bool{}, rib: map[netip.Prefix][]Path{}}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.o.Reopen == 0 {
		s.o.Reopen = 5 * time.Minute
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of BGP state: %w", err)
	}
	_, err := os.Stat(s.withdrawnFile())
	s.fixed = err == nil
	if s.ns, err = linuxns.Open(""); err != nil {
		return nil, err
	}
	if s.k.h, err = s.ns.Netlink(); err != nil {
		return nil, errors.Join(err, s.ns.Close())
	}
	s.seen.links, s.seen.hops = map[int]bool{}, map[netip.Addr]answer{}
	s.restore()
	return s, nil
}

// runningFile says that peers may hold routes of an earlier run; withdrawnFile that the
// administrator took them back.
func (s *Speaker) runningFile() string   { return filepath.Join(s.o.Dir, "running") }
func (s *Speaker) withdrawnFile() string { return filepath.Join(s.o.Dir, "withdrawn") }
func (s *Speaker) inputsFile() string    { return filepath.Join(s.o.Dir, "inputs.json") }

// save keeps the inputs, so that the next start need not wait for the API server while
// peers count the restart time down.
func (s *Speaker) save(in Inputs) error {
	in.Withdrawn = false
	data, err := json.Marshal(in)
	if err != nil || bytes.Equal(data, s.saved) {
		return err
	}
	tmp := s.inputsFile() + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("keep the inputs of BGP: %w", err)
	}
	if err := os.Rename(tmp, s.inputsFile()); err != nil {
		return fmt.Errorf("keep the inputs of BGP: %w", err)
	}
	s.saved = data
	return nil
}

// restore begins where the run before was; without a file, or with one of another version,
// with nothing.
func (s *Speaker) restore() {
	data, err := os.ReadFile(s.inputsFile())
	if err != nil {
		return
	}
	var in Inputs
	if err := json.Unmarshal(data, &in); err != nil {
		s.log.Warn("cannot use the BGP inputs of before", "error", err)
		return
	}
	s.inputs, s.heard.plan, s.saved = &in, true, data
}

// Set gives what Plan needs; nil when there is no usable configuration any more, which
// withdraws everything. Nothing happens before the first call.
func (s *Speaker) Set(in *Inputs) {
	s.mu.Lock()
	if in == nil {
		in = &Inputs{}
	}
	s.inputs, s.heard.plan = in, true
	s.mu.Unlock()
	s.kick()
}

// Withdraw takes back what the node tells, or tells it again; it outlives the agent, but
// not a reboot.
func (s *Speaker) Withdraw(yes bool) error {
	var err error
	if yes {
		err = os.WriteFile(s.withdrawnFile(), nil, 0o600)
	} else if err = os.Remove(s.withdrawnFile()); errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("note the withdrawal: %w", err)
	}
	s.mu.Lock()
	s.fixed, s.heard.plan = yes, true
	s.mu.Unlock()
	s.kick()
	return nil
}

func (s *Speaker) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

const (
	settle   = 20 * time.Millisecond // events come in bursts
	fullScan = time.Minute
	retryMin = time.Second
	retryMax = 30 * time.Second
)

// Run speaks until ctx ends. What peers know of the node stays then, unless the options
// say that it leaves; the kernel's routes stay in any case.
func (s *Speaker) Run(ctx context.Context) error {
	w, err := s.ns.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return err
	}
	defer close(s.done)
	inner, cancel := context.WithCancel(ctx)
	failed := make(chan error, 1)
	go func() { failed <- w.Run(inner, s.onKernel) }()
	defer func() {
		cancel()
		w.Close()
		s.stop()
		s.k.h.Close()
		_ = s.ns.Close()
	}()
	s.started = time.Now()
	tick := time.NewTicker(fullScan)
	defer tick.Stop()
	reopen := time.NewTicker(s.o.Reopen)
	defer reopen.Stop()
	retry := retryMin
	for {
		again := s.sync(ctx)
		var later <-chan time.Time
		if again != nil {
			later = time.After(retry)
			retry = min(2*retry, retryMax)
		} else if retry = retryMin; !s.settled {
			later = time.After(retryMin) // look whether the peers have told everything
		}
		select {
		case err := <-failed:
			return err
		case <-ctx.Done():
			<-failed
			return nil
		case <-later:
			s.note(event{plan: true, rib: true, kernel: true}, nil)
		case <-tick.C:
			s.note(event{rib: true, kernel: true}, nil)
		case <-reopen.C:
			s.reopen(ctx)
		case reply := <-s.ask:
			reply <- s.status()
		case <-s.wake:
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

func (s *Speaker) reopen(ctx context.Context) {
	if s.server == nil {
		return
	}
	if err := s.server.reopen(ctx, netip.Addr{}); err != nil {
		s.log.Warn("sessions that the prefix limit closed stay closed", "error", err)
	}
}

func (s *Speaker) note(e event, prefixes []netip.Prefix) {
	s.mu.Lock()
	s.heard.plan, s.heard.rib, s.heard.kernel = s.heard.plan || e.plan, s.heard.rib || e.rib, s.heard.kernel || e.kernel
	for _, p := range prefixes {
		s.dirty[p] = true
	}
	s.mu.Unlock()
}

// onKernel judges a netlink message.
func (s *Speaker) onKernel(msg *syscall.NetlinkMessage) {
	s.seen.Lock()
	yes := matters(msg, s.seen.ours, s.seen.links, func(a netip.Addr) bool { _, ok := s.seen.hops[a]; return ok })
	s.seen.Unlock()
	if yes {
		s.note(event{kernel: true}, nil)
		s.kick()
	}
}

// sync makes one run; an error is tried again.
func (s *Speaker) sync(ctx context.Context) error {
	s.mu.Lock()
	in, e, dirty := s.inputs, s.heard, s.dirty
	if in == nil {
		s.mu.Unlock()
		return nil
	}
	now := *in
	now.Withdrawn = now.Withdrawn || s.fixed
	s.heard, s.dirty = event{}, map[netip.Prefix]bool{}
	s.mu.Unlock()

	var errs []error
	if e.plan {
		errs = append(errs, s.applyPlan(ctx, now))
	}
	if s.server != nil {
		// Before the table is read, and then all of it: what the peers told before their last
		// word may have come after dirty was taken, and its routes would go for a moment.
		settled := s.settle()
		errs = append(errs, s.readRIB(e.rib || settled, dirty))
		e.kernel = e.kernel || settled
	}
	if s.o.Install {
		errs = append(errs, s.applyFIB(e, dirty))
	}
	err := errors.Join(errs...)
	if err != nil && (s.failed == nil || s.failed.Error() != err.Error()) {
		s.log.Error("BGP is not all as wanted", "error", err)
	}
	s.failed = err
	return err
}

// applyPlan makes sessions and told routes as they should be.
func (s *Speaker) applyPlan(ctx context.Context, in Inputs) error {
	state := Plan(in)
	if state.ASN == 0 { // no configuration
		s.state = State{Filter: state.Filter}
		if s.server != nil {
			s.server.stop(true)
			s.server = nil
			s.forget()
			clear(s.rib)
		}
		s.settled = true
		return nil
	}
	if s.server != nil && s.server.needsRestart(&state) {
		s.log.Info("restarting BGP: AS number, router ID, port or restart time changed")
		s.server.stop(false)
		s.server = nil
		clear(s.rib)
	}
	if s.server == nil {
		if err := s.start(ctx, &state); err != nil {
			return err
		}
	}
	if s.o.Problems != nil && !slices.Equal(s.state.Problems, state.Problems) {
		s.o.Problems(state.Problems)
	}
	s.state = state
	return errors.Join(s.server.apply(ctx, &state), s.save(in))
}

// start makes the server; restarting if an earlier run left routes with peers or here.
func (s *Speaker) start(ctx context.Context, state *State) error {
	have, _, err := s.k.routes()
	if err != nil {
		return err
	}
	_, err = os.Stat(s.runningFile())
	restarting := err == nil || len(have) > 0
	s.settled, s.toldSince = !restarting, time.Time{}
	s.server, err = startSession(ctx, state, restarting && state.RestartTime > 0, s.log, func(prefixes []netip.Prefix) {
		s.note(event{rib: prefixes == nil}, prefixes)
		s.kick()
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.runningFile(), nil, 0o600); err != nil {
		return fmt.Errorf("note that BGP runs: %w", err)
	}
	s.log.Info("BGP runs", "asn", state.ASN, "routerID", state.RouterID, "restarting", restarting)
	return nil
}

func (s *Speaker) forget() {
	_, _ = os.Remove(s.runningFile()), os.Remove(s.inputsFile())
	s.saved = nil
}

// stop ends the server: with everything withdrawn if the node leaves.
func (s *Speaker) stop() {
	if s.server == nil {
		return
	}
	leave := s.o.Leave != nil && s.o.Leave()
	s.server.stop(leave)
	if leave {
		s.forget()
	}
	s.log.Info("BGP stops", "withdrawn", leave)
}

// toldFor is how long it has to stay that all peers have told everything where some of them
// do not mark the end of what they tell.
const toldFor = 5 * time.Second

// settle lets stale routes go once all peers have told everything, or had their time; it
// says whether that is so now and was not before.
func (s *Speaker) settle() bool {
	if s.settled {
		return false
	}
	told, marked := s.server.allTold()
	switch {
	case !told:
		s.toldSince = time.Time{}
	case s.toldSince.IsZero():
		s.toldSince = time.Now()
	}
	patience := max(s.state.RestartTime, 10*time.Second)
	over := marked || told && time.Since(s.toldSince) >= toldFor
	if !over && time.Since(s.started) < patience {
		return false
	}
	s.settled = true
	s.log.Info("routes of before the restart are confirmed or removed now", "marked", marked)
	return true
}
