package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// Options say what a Controller works with.
type Options struct {
	// NodeName says which pods are this node's.
	NodeName string
	// PodLinkGroup is the link group of pods' interfaces.
	PodLinkGroup uint32
	// HostNetNS is the path of the network namespace to work in; empty is the process's.
	HostNetNS string
	Client    kubernetes.Interface
	Log       *slog.Logger
	// Restricted gets the addresses of this node's pods whose egress is restricted, sorted,
	// whenever they change, before a new one of them starts; may be nil.
	Restricted func([]netip.Addr) error
	// Patience is how long Admit waits; 0 is 10 s.
	Patience time.Duration
}

// Controller enforces the cluster's network policies on this node. Make it with New.
type Controller struct {
	o     Options
	log   *slog.Logger
	ns    *linuxns.NS
	table *table
	watch *watcher
	stats *stats

	wake  chan struct{}
	check chan struct{} // somebody else changed our table
	stale chan struct{} // flows may not be allowed any more

	mu       sync.Mutex
	pending  pending
	api      map[string]*Pod // as the API has them, by UID
	admitted map[string]*Pod
	before   map[netip.Addr]bool // guarded since an earlier run, until the first step
	synced   bool
	reason   error // why not

	state  sync.RWMutex // guards what engine holds against cut
	engine *engine
}

// pending is what changed since the last step, and who waits for it. nil is gone.
type pending struct {
	pods       map[string]*Pod
	namespaces map[string]map[string]string
	policies   map[string]*Policy
	waiters    []chan struct{}
}

func newPending() pending {
	return pending{pods: map[string]*Pod{}, namespaces: map[string]map[string]string{}, policies: map[string]*Policy{}}
}

// New makes a Controller. The rules of an earlier run stay as they are.
func New(o Options) (*Controller, error) {
	ns, err := linuxns.Open(o.HostNetNS)
	if err != nil {
		return nil, err
	}
	if o.Patience == 0 {
		o.Patience = 10 * time.Second
	}
	c := &Controller{
		o: o, log: o.Log, ns: ns, table: newTable(ns.FD(), o.PodLinkGroup), engine: newEngine(o.NodeName),
		wake: make(chan struct{}, 1), check: make(chan struct{}, 1), stale: make(chan struct{}, 1),
		pending: newPending(), api: map[string]*Pod{}, admitted: map[string]*Pod{}, reason: errNotYet,
	}
	c.stats = newStats(c)
	c.before = c.table.guarded()
	if c.watch, err = newWatcher(o.Client, c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

var errNotYet = errors.New("the cluster's network policies are not known yet")

// Close releases what New took; the kernel's table stays. Not while Run runs.
func (c *Controller) Close() error {
	c.table.close()
	return c.ns.Close()
}

// Remove takes away the table that a Controller left in the namespace (empty: the
// process's own). Without one it does nothing.
func Remove(hostNetNS string) error {
	ns, err := linuxns.Open(hostNetNS)
	if err != nil {
		return err
	}
	defer ns.Close()
	t := newTable(ns.FD(), 0)
	defer t.close()
	return t.remove()
}

// retryAfter a failure of the kernel.
const retryAfter = time.Second

// Run enforces until ctx ends. The kernel's rules then stay as they are.
func (c *Controller) Run(ctx context.Context) error {
	events, err := c.ns.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return err
	}
	defer events.Close()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	failed := make(chan error, 1)
	wg.Go(func() { failed <- events.Run(ctx, c.event) })
	wg.Go(func() { c.cutFlows(ctx) })
	wg.Go(func() { c.watch.run(ctx) })
	if !c.watch.wait(ctx) {
		return nil
	}
	return c.loop(ctx, failed)
}

func (c *Controller) loop(ctx context.Context, failed <-chan error) error {
	var retry <-chan time.Time
	for whole := true; ; {
		if err := c.step(whole); err != nil {
			c.log.Error("cannot program network policies", "err", err)
			retry, whole = time.After(retryAfter), true
		} else {
			retry, whole = nil, false
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-c.wake:
		case <-retry:
		case <-c.check:
			whole = c.broken()
		}
	}
}

// step takes over what changed and programs it; whole puts everything in place anew.
func (c *Controller) step(whole bool) error {
	defer c.stats.timed(time.Now())
	c.mu.Lock()
	work := c.pending
	c.pending = newPending()
	c.mu.Unlock()
	c.state.Lock()
	d := c.engine.apply(work)
	c.state.Unlock()
	err := c.program(whole, d)
	if err == nil && (whole || len(d.isolated) > 0) {
		err = c.tellRestricted()
	}
	if err != nil {
		c.mu.Lock()
		c.pending.waiters = append(c.pending.waiters, work.waiters...)
		c.reason = err
		c.mu.Unlock()
		return err
	}
	if whole || d.removed {
		signal(c.stale)
	}
	c.mu.Lock()
	c.synced, c.reason, c.before = true, nil, nil
	c.mu.Unlock()
	for _, w := range work.waiters {
		close(w)
	}
	return nil
}

func (c *Controller) tellRestricted() error {
	if c.o.Restricted == nil {
		return nil
	}
	var list []netip.Addr
	for t := range c.engine.content.isolated {
		if t.direction == Egress {
			list = append(list, t.addr)
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return c.o.Restricted(list)
}

// program prefers the change; the whole is put in place when the kernel refuses it.
func (c *Controller) program(whole bool, d *changes) error {
	if !whole && d.empty() {
		return nil
	}
	if !whole && c.table.change(d) == nil {
		return nil
	}
	return c.table.replace(c.engine.content)
}

// apply takes over all that is pending and says what it changes.
func (e *engine) apply(work pending) *changes {
	for name, labels := range work.namespaces {
		e.setNamespace(name, labels)
	}
	for key, p := range work.policies {
		e.setPolicy(key, p)
	}
	for uid, p := range work.pods {
		e.setPod(uid, p)
	}
	return e.take()
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// event has the table checked if somebody else touched it.
func (c *Controller) event(msg *syscall.NetlinkMessage) {
	if msg == nil || linuxns.TableOf(msg) == tableName && !c.table.own(msg.Header.Pid) {
		signal(c.check)
	}
}

// broken says whether the kernel's table differs from what is wanted.
func (c *Controller) broken() bool {
	if c.table.same(c.engine.content) {
		return false
	}
	c.log.Warn("somebody changed the network policy rules; putting them back", "table", tableName)
	c.stats.healed.Inc()
	return true
}

// unready is why nothing is enforced yet; nil once it is.
func (c *Controller) unready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.synced {
		return nil
	}
	return fmt.Errorf("network policies cannot be enforced: %w", c.reason)
}
