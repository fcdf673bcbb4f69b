package services

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	coreinformers "k8s.io/client-go/informers/core/v1"
	discoveryinformers "k8s.io/client-go/informers/discovery/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// Options say what a Proxy works with.
type Options struct {
	// Node is what is known of the node at first; see SetNode.
	Node NodeFacts
	// PodLinkGroup is the link group of pods' interfaces: what comes in by them keeps its
	// source address.
	PodLinkGroup uint32
	// HostNetNS is the path of the network namespace to work in; empty is the process's.
	HostNetNS string

	// Services and Slices are watched; the caller starts their factory.
	Services coreinformers.ServiceInformer
	Slices   discoveryinformers.EndpointSliceInformer

	Log *slog.Logger
}

// Proxy keeps the kernel's tables in step with the Services. Make it with New.
type Proxy struct {
	log      *slog.Logger
	ns       *linuxns.NS
	table    *table
	services coreinformers.ServiceInformer
	slices   cache.Indexer
	synced   []cache.InformerSynced

	mu      sync.Mutex
	node    NodeFacts
	dirty   map[string]bool     // Services to look at, by namespace/name
	every   bool                // look at all of them
	unready map[netip.Addr]bool // pods of this node; see SetReady
	told    bool                // that the watch is forbidden

	wake  chan struct{}
	check chan struct{} // somebody else changed our tables

	rival      func() (pid int, found bool)
	rivalEvery time.Duration

	health *health
	stats  *stats
	stale  chan struct{} // flows are to be cleaned up
	flows  flows         // which; by mu

	state *state // Run only
}

// byService indexes slices by their Service.
const byService = "service"

// New makes a Proxy and registers with the informers, which must not have been started.
func New(o Options) (*Proxy, error) {
	ns, err := linuxns.Open(o.HostNetNS)
	if err != nil {
		return nil, err
	}
	p := &Proxy{
		log: o.Log, ns: ns, table: newTable(ns, o.PodLinkGroup), services: o.Services, node: o.Node,
		dirty: map[string]bool{}, unready: map[netip.Addr]bool{}, wake: make(chan struct{}, 1), check: make(chan struct{}, 1), state: newState(),
		health: newHealth(ns, o.Log), stats: newStats(), stale: make(chan struct{}, 1), flows: flows{},
		rival: func() (int, bool) { return rival("/proc", "self") }, rivalEvery: rivalEvery,
	}
	if err := p.register(o); err != nil {
		_ = ns.Close()
		return nil, err
	}
	return p, nil
}

func (p *Proxy) register(o Options) error {
	services, slices := o.Services.Informer(), o.Slices.Informer()
	p.slices = slices.GetIndexer()
	small := newStripper(o.Node.Name)
	err := errors.Join(
		slices.AddIndexers(cache.Indexers{byService: func(obj any) ([]string, error) { return []string{serviceOf(obj)}, nil }, byNear: nearIndex(o.Node.Name)}),
		services.SetTransform(small.strip), slices.SetTransform(small.strip),
		services.SetWatchErrorHandlerWithContext(p.watchFailed), slices.SetWatchErrorHandlerWithContext(p.watchFailed),
	)
	for informer, key := range map[cache.SharedIndexInformer]func(any) string{services: objectKey, slices: serviceOf} {
		enqueue := func(obj any) { p.enqueue(key(obj)) }
		r, addErr := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: enqueue, DeleteFunc: enqueue, UpdateFunc: func(old, obj any) { enqueue(old); enqueue(obj) },
		})
		if err = errors.Join(err, addErr); err == nil {
			p.synced = append(p.synced, r.HasSynced)
		}
	}
	if err != nil {
		return fmt.Errorf("watch services: %w", err)
	}
	return nil
}

func objectKey(obj any) string {
	key, _ := cache.DeletionHandlingMetaNamespaceKeyFunc(obj)
	return key
}

// serviceOf is the Service that a slice belongs to; "" for none.
func serviceOf(obj any) string {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	s, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok || s.Labels[discoveryv1.LabelServiceName] == "" {
		return ""
	}
	return s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
}

// watchFailed tells once that the cluster does not let us see Services; what the kernel has
// stays as it is.
func (p *Proxy) watchFailed(ctx context.Context, r *cache.Reflector, err error) {
	if !apierrors.IsForbidden(err) {
		cache.DefaultWatchErrorHandler(ctx, r, err)
		return
	}
	p.mu.Lock()
	told := p.told
	p.told = true
	p.mu.Unlock()
	if !told {
		p.log.Warn("the service proxy is off: this node may not see services; apply node-rbac.yaml, or set serviceProxy: external", "err", err)
	}
}

// Forbidden says whether the cluster does not let this node see Services or slices.
func (p *Proxy) Forbidden() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.told
}

// SetNode tells what the node is like now.
func (p *Proxy) SetNode(node NodeFacts) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if reflect.DeepEqual(node, p.node) {
		return
	}
	p.node, p.every = node, true
	signal(p.wake)
}

func (p *Proxy) enqueue(service string) {
	if service == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dirty[service] = true
	p.health.queued()
	signal(p.wake)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Close releases what New took; the kernel's tables stay. Not while Run runs.
func (p *Proxy) Close() error {
	p.table.close()
	return p.ns.Close()
}

// retryAfter a failure of the kernel.
const retryAfter = time.Second

// Run serves until ctx ends. The kernel's tables stay as they are: connections go on.
// ready is called once the tables hold what the API server has. While a kube-proxy runs
// here there are no tables of ours.
func (p *Proxy) Run(ctx context.Context, ready func()) error {
	for p.awaitRival(ctx) {
		if err := p.serve(ctx, ready); !errors.Is(err, errRival) {
			return err
		}
	}
	return nil
}

// errRival ends serve when a kube-proxy has come.
var errRival = errors.New("a kube-proxy runs here")

func (p *Proxy) serve(ctx context.Context, ready func()) error {
	watch, err := p.ns.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return err
	}
	defer watch.Close()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	failed := make(chan error, 2)
	wg.Go(func() { failed <- watch.Run(ctx, p.event) })
	wg.Go(func() { p.watchRival(ctx, failed) })
	wg.Go(func() { p.health.run(ctx) })
	wg.Go(func() { p.cleanFlows(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), p.synced...) {
		return nil
	}
	return p.loop(ctx, failed, ready)
}

func (p *Proxy) loop(ctx context.Context, failed <-chan error, ready func()) error {
	var retry <-chan time.Time
	for whole := true; ; {
		if err := p.step(whole); err != nil {
			p.log.Error("cannot program services", "err", err)
			retry, whole = time.After(retryAfter), true
		} else {
			retry, whole = nil, false
			ready()
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-p.wake:
		case <-retry:
		case <-p.check:
			whole = p.broken()
		}
	}
}

// rivalEvery is how often a kube-proxy is looked for.
const rivalEvery = 15 * time.Second

// awaitRival waits until no kube-proxy runs here; false when ctx ended before. Rules of
// ours would go stale meanwhile, and come before the kube-proxy's: they are taken away.
func (p *Proxy) awaitRival(ctx context.Context) bool {
	for first := true; ; first = false {
		pid, found := p.rival()
		if !found {
			return ctx.Err() == nil
		}
		if first {
			p.log.Warn("the service proxy is off while a kube-proxy runs here; stop one of them, or set serviceProxy: external", "process", pid)
		}
		if err := p.table.remove(); err != nil {
			p.log.Error("cannot remove the service rules", "err", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(p.rivalEvery):
		}
	}
}

// watchRival reports a kube-proxy that has come to stay: one that has just started has no
// rules yet.
func (p *Proxy) watchRival(ctx context.Context, failed chan<- error) {
	tick := time.NewTicker(p.rivalEvery)
	defer tick.Stop()
	for seen := 0; seen < 2; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, found := p.rival(); found {
			seen++
		} else {
			seen = 0
		}
	}
	failed <- errRival
}

// Remove takes away the tables that a Proxy left in the namespace (empty: the process's
// own). Without them it does nothing.
func Remove(hostNetNS string) error {
	ns, err := linuxns.Open(hostNetNS)
	if err != nil {
		return err
	}
	defer ns.Close()
	t := newTable(ns, 0)
	defer t.close()
	return t.remove()
}

// step takes over what changed and programs it; whole puts everything in place anew.
func (p *Proxy) step(whole bool) error {
	start := time.Now()
	changed, leaving := p.update(whole)
	if !whole && !changed.empty() {
		whole = p.table.change(changed) != nil
	}
	if whole {
		if err := p.table.replace(p.state.whole()); err != nil {
			return err
		}
		changed.flows = p.state.allFlows()
	}
	if whole || !changed.empty() {
		p.stats.timed(start, whole)
	}
	p.health.done(leaving)
	p.health.serve()
	p.staleFlows(changed.flows)
	return nil
}

// staleFlows has UDP flows looked at.
func (p *Proxy) staleFlows(f flows) {
	if len(f) == 0 {
		return
	}
	p.mu.Lock()
	p.flows.merge(f)
	p.mu.Unlock()
	signal(p.stale)
}

// cleanFlows ends stale flows until ctx ends: the dump of a big connection tracking table
// must not hold up changes.
func (p *Proxy) cleanFlows(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.stale:
		}
		p.mu.Lock()
		s := staleFlows{p.flows, p.node.Addresses}
		p.flows = flows{}
		p.mu.Unlock()
		if count, err := s.clean(p.ns); err != nil {
			p.log.Warn("some UDP clients may go on sending to endpoints that are gone", "err", err)
		} else if count > 0 {
			p.log.Debug("ended stale UDP flows", "count", count)
		}
	}
}

// update looks at the Services that changed; before the whole is put in place nobody asks
// what changed.
func (p *Proxy) update(whole bool) (total *delta, leaving bool) {
	p.mu.Lock()
	node, dirty := p.node, p.dirty
	if p.every {
		for _, key := range p.services.Informer().GetStore().ListKeys() {
			dirty[key] = true
		}
	}
	p.dirty, p.every = map[string]bool{}, false
	p.mu.Unlock()
	total = &delta{}
	for key := range dirty {
		age, ports := p.resolve(key, node)
		if whole {
			p.state.load(key, age, ports)
			continue
		}
		total.merge(p.state.set(key, age, ports))
	}
	return total, node.Leaving
}

func (p *Proxy) resolve(key string, node NodeFacts) (age int64, ports []Port) {
	var service *corev1.Service
	if obj, ok, _ := p.services.Informer().GetStore().GetByKey(key); ok {
		service = obj.(*corev1.Service)
		age = service.CreationTimestamp.Unix()
	}
	var list []*discoveryv1.EndpointSlice
	objs, _ := p.slices.ByIndex(byService, key)
	for _, obj := range objs {
		list = append(list, obj.(*discoveryv1.EndpointSlice))
	}
	p.health.set(key, checkOf(service, list, node))
	if service != nil && !service.Spec.PublishNotReadyAddresses {
		node.unready = p.readiness
	}
	return age, Resolve(service, list, node, p.state.ports[key])
}

// event has the tables checked if somebody else touched them.
func (p *Proxy) event(msg *syscall.NetlinkMessage) {
	if msg == nil || linuxns.TableOf(msg) == tableName && !p.table.own(msg.Header.Pid) {
		signal(p.check)
	}
}

// broken says whether the kernel's tables differ from what is wanted.
func (p *Proxy) broken() bool {
	content, _ := p.state.all()
	if p.table.same(content) {
		return false
	}
	p.log.Warn("somebody changed the service rules; putting them back", "table", tableName)
	return true
}
