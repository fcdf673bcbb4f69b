package provider

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"

	"github.com/vk-metal/vk-metal/internal/diskuse"
	"github.com/vk-metal/vk-metal/internal/staticpods"
	"github.com/vk-metal/vk-metal/internal/stuck"
	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/systemd"
)

// Provider runs the pods of one node.
type Provider struct {
	deps     Deps
	log      *slog.Logger
	users    userMetrics
	starts   startMetrics // of all pods
	timings  timings
	starting activity

	mu      sync.Mutex
	workers map[types.UID]*worker
	units   map[string]*worker // the worker of a unit
	ctx     context.Context
	group   sync.WaitGroup
	pods    corelisters.PodLister
	pending map[types.UID]bool // workers that have not had their first look
	synced  bool
	ready   chan struct{}
	once    sync.Once

	qosDirty chan struct{}
	reader   pulse // of unit events
	granted  allocations
	static   statics
	down     down
	calls    stuck.Calls // into volumes, which may hang

	holdForbidden        sync.Once // told that nothing is held back
	privilegedUnlabelled sync.Once // told that the policy has no label for privileged containers
	appArmorMissing      sync.Once // told that the default profile cannot be had
}

// New makes a Provider; nothing happens before Run.
func New(deps Deps) (*Provider, error) {
	for name, missing := range map[string]bool{
		"NodeName": deps.NodeName == "", "Client": deps.Client == nil, "Runtime": deps.Runtime == nil,
		"Executor": deps.Executor == nil, "Network": deps.Network == nil, "Images": deps.Images == nil,
		"Volumes": deps.Volumes == nil, "Objects": deps.Objects == nil, "Probes": deps.Probes == nil,
		"Logs": deps.Logs == nil, "Sandbox": deps.Sandbox == nil, "Recorder": deps.Recorder == nil,
	} {
		if missing {
			return nil, fmt.Errorf("make provider: %s is missing", name)
		}
	}
	if deps.Layout.Run == "" || deps.Layout.Lib == "" {
		return nil, errors.New("make provider: Layout is missing")
	}
	if deps.Log == nil {
		deps.Log = slog.Default()
	}
	if deps.Disk == nil {
		deps.Disk = &diskuse.Meter{}
	}
	if deps.HostIPs == nil {
		deps.HostIPs = func() []string { return nil }
	}
	return &Provider{
		users: newUserMetrics(), starts: newStartMetrics(), timings: newTimings(),
		deps: deps, log: deps.Log, workers: map[types.UID]*worker{}, units: map[string]*worker{},
		pending: map[types.UID]bool{}, ready: make(chan struct{}), qosDirty: make(chan struct{}, 1),
		static:  statics{dirty: make(chan struct{}, 1)},
		granted: allocations{pods: map[types.UID]*corev1.Pod{}, deferred: map[types.UID]podplan.Deferred{}, leaving: map[types.UID]bool{}},
	}, nil
}

// Ready is closed once the pods are known and every worker has had its first look.
func (p *Provider) Ready() <-chan struct{} { return p.ready }

// Run works until ctx ends. It touches no running pod when it stops.
func (p *Provider) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.mu.Lock()
	p.ctx = ctx
	p.mu.Unlock()
	if err := p.keepPrivate(); err != nil {
		return err
	}
	if err := p.loadAllocations(); err != nil {
		return err
	}
	p.deps.Objects.OnChange(p.objectChanged)
	p.deps.Probes.OnChange(func(uid string) {
		if w := p.byUID(types.UID(uid)); w != nil {
			w.wakeUp()
		}
	})
	p.deps.Probes.OnEvent(p.probeEvent)
	if source := p.deps.Hold.Endpoints; source != nil {
		source.OnChange(p.endpointsChanged)
	}
	err := p.runControllers(ctx)
	cancel()
	p.group.Wait()
	return err
}

// policy is what the node allows.
func (p *Provider) policy() podplan.Policy {
	node := p.deps.Node
	return podplan.Policy{
		DenyPrivileged: node.DenyPrivileged, UnsafeSysctls: node.UnsafeSysctls, AppArmor: node.AppArmor,
		HugePages: len(node.HugePages) > 0, NoUserNamespaces: node.NoUserNamespaces,
	}
}

// hook lets fault tests stop the process at a named place.
func (p *Provider) hook(step string) {
	if p.deps.StepHook != nil {
		p.deps.StepHook(step)
	}
}

// step is an effect between its two hooks.
func (w *worker) step(name string, effect func() error) error {
	w.p.hook(name + "/before")
	defer w.p.hook(name + "/after")
	return w.p.timed(name, effect)
}

// seen takes up a pod's object as the API has it now.
func (p *Provider) seen(pod *corev1.Pod) {
	if isMirror(pod) {
		p.mirrorChanged()
		return
	}
	if err := podplan.CheckNames(pod); err != nil {
		p.log.Error("Refused a pod whose names cannot be used", "err", err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.workers[pod.UID]; w != nil {
		w.set(pod)
		return
	}
	p.startWorker(pod, false)
}

// startWorker makes the pod's worker. The lock is held.
func (p *Provider) startWorker(pod *corev1.Pod, gone bool) {
	if p.ctx == nil || p.ctx.Err() != nil {
		return
	}
	w := newWorker(p, pod)
	w.gone = gone
	p.workers[pod.UID] = w
	if !p.synced {
		p.pending[pod.UID] = true
	}
	ctx := p.ctx
	p.group.Go(func() {
		w.run(ctx)
		p.forget(w)
	})
	p.markQOS()
}

// forget drops a worker that has ended. A pod that came back meanwhile gets a new one.
func (p *Provider) forget(w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.workers[w.uid] == w {
		delete(p.workers, w.uid)
	}
	for unit, owner := range p.units {
		if owner == w {
			delete(p.units, unit)
		}
	}
	p.lookedAtLocked(w.uid)
	p.markQOS()
	if staticpods.IsUID(w.uid) {
		p.static.kick() // another of its name may wait
	}
}

func (p *Provider) byUID(uid types.UID) *worker {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.workers[uid]
}

// all returns the workers of now.
func (p *Provider) all() []*worker {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]*worker, 0, len(p.workers))
	for _, w := range p.workers {
		list = append(list, w)
	}
	return list
}

// RetryVolumes has every pod try at once again what it could not do with its volumes: what it
// lacked may be there.
func (p *Provider) RetryVolumes() {
	for _, w := range p.all() {
		w.retryNow(func(key string) bool { return key == opVolumes || key == opRelease })
	}
}

func (p *Provider) ownUnit(unit string, w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.units[unit] = w
}

// lookedAt notes a worker's first look; after the last of the first ones we are ready.
func (p *Provider) lookedAt(uid types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lookedAtLocked(uid)
}

func (p *Provider) lookedAtLocked(uid types.UID) {
	delete(p.pending, uid)
	if p.synced && len(p.pending) == 0 {
		p.once.Do(func() { close(p.ready) })
	}
}

// unitEvents wakes the workers of changed units.
func (p *Provider) unitEvents(ctx context.Context) error {
	events := p.deps.Runtime.Events()
	tick := time.NewTicker(pulseEvery)
	defer tick.Stop()
	defer p.reader.rest()
	for {
		p.reader.beat()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case e, ok := <-events:
			if !ok {
				return streamEnded(ctx)
			}
			p.unitEvent(e)
		}
	}
}

// streamEnded is an error unless we are about to stop as well.
func streamEnded(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(time.Second):
		return errors.New("watch units: the event stream ended")
	}
}

func (p *Provider) unitEvent(e systemd.Event) {
	if e.All {
		for _, w := range p.all() {
			w.unitChanged()
		}
		return
	}
	p.mu.Lock()
	w := p.units[e.Unit]
	if w == nil {
		w = p.workers[types.UID(e.PodUID)]
	}
	p.mu.Unlock()
	if w != nil {
		w.unitChanged()
	}
}
