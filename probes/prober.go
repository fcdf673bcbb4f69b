package probes

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
)

// Prober runs the probes of all containers of a node. An idle probe is an entry of the
// agenda. Those that are due together are run together: tcp and plain http in rounds, each
// other in a goroutine of its own.
type Prober struct {
	execer  Execer
	metrics *probeMetrics
	began   time.Time

	onChange func(podUID string)
	onEvent  func(target Target, eventType, reason, message string)

	mu     sync.Mutex
	pods   map[string]map[string]*container // by UID and container name
	agenda *agenda
}

var _ Manager = (*Prober)(nil)

// Option changes what New makes.
type Option func(*Prober)

// WithRegistry registers prober_probe_total and prober_probe_duration_seconds.
func WithRegistry(registry prometheus.Registerer) Option {
	return func(p *Prober) { registry.MustRegister(p.metrics.total, p.metrics.duration) }
}

// New returns a Prober without probes. OnChange and OnEvent are to be set before the
// first Sync.
func New(execer Execer, options ...Option) *Prober {
	p := &Prober{
		execer: execer, metrics: newMetrics(), began: time.Now(),
		onChange: func(string) {}, onEvent: func(Target, string, string, string) {},
		pods: map[string]map[string]*container{},
	}
	p.agenda = newAgenda(p.began, p.runDue)
	for _, option := range options {
		option(p)
	}
	return p
}

// OnChange implements Manager.
func (p *Prober) OnChange(f func(podUID string)) { p.onChange = f }

// OnEvent implements Manager.
func (p *Prober) OnEvent(f func(target Target, eventType, reason, message string)) { p.onEvent = f }

// container is one attempt that has probes. Prober.mu guards it.
type container struct {
	target  Target
	workers map[Kind]*worker
	results Results
}

// Sync implements Manager.
func (p *Prober) Sync(target Target) {
	specs := probeSpecs(target.Container)
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.pods[target.PodUID][target.Container.Name]
	switch {
	case old != nil && old.target.Attempt > target.Attempt:
		return // late news of an older attempt
	case old != nil && old.target.Attempt == target.Attempt:
		old.target.PodIP = target.PodIP
		return
	case old != nil:
		p.remove(old)
	}
	if len(specs) == 0 {
		return
	}
	p.add(target, specs)
}

func probeSpecs(c corev1.Container) map[Kind]*corev1.Probe {
	specs := map[Kind]*corev1.Probe{Startup: c.StartupProbe, Liveness: c.LivenessProbe, Readiness: c.ReadinessProbe}
	for kind, spec := range specs {
		if spec == nil {
			delete(specs, kind)
		}
	}
	return specs
}

func (p *Prober) add(target Target, specs map[Kind]*corev1.Probe) {
	c := &container{target: target, workers: map[Kind]*worker{}}
	adopted := target.StartedAtUnixNano < p.began.UnixNano()
	c.results.Started = specs[Startup] == nil || adopted && target.WasStarted
	c.results.Ready = c.results.Started && (specs[Readiness] == nil || adopted && target.WasReady)
	if p.pods[target.PodUID] == nil {
		p.pods[target.PodUID] = map[string]*container{}
	}
	p.pods[target.PodUID][target.Container.Name] = c
	for kind, spec := range specs {
		w := newWorker(p, c, kind, spec)
		c.workers[kind] = w
		p.agenda.add(w, p.firstRun(target, spec, adopted))
	}
}

// firstRun is when the initial delay is over. After an agent restart the probes of all
// containers are spread over their periods.
func (p *Prober) firstRun(target Target, spec *corev1.Probe, adopted bool) time.Time {
	first := time.Unix(0, target.StartedAtUnixNano).Add(seconds(spec.InitialDelaySeconds))
	now := time.Now()
	if period := period(spec); adopted && now.Sub(p.began) < period {
		now = now.Add(rand.N(period))
	}
	if first.Before(now) {
		return now
	}
	return first
}

// runDue begins the probes that are due.
func (p *Prober) runDue() {
	var calls []*call
	for _, r := range p.takeDue() {
		if c := r.call(); c != nil {
			calls = append(calls, c)
		} else {
			go r.fire()
		}
	}
	for len(calls) > roundSize {
		go runCalls(calls[:roundSize])
		calls = calls[roundSize:]
	}
	runCalls(calls)
}

func (p *Prober) takeDue() (runs []*run) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.agenda.take(time.Now()) {
		if r := w.begin(); r != nil {
			runs = append(runs, r)
		}
	}
	return runs
}

func seconds(n int32) time.Duration { return time.Duration(n) * time.Second }

// period and timeout apply the API's defaults as well: static pods may come without.
func period(spec *corev1.Probe) time.Duration {
	if spec.PeriodSeconds < 1 {
		return 10 * time.Second
	}
	return seconds(spec.PeriodSeconds)
}

func timeout(spec *corev1.Probe) time.Duration {
	if spec.TimeoutSeconds < 1 {
		return time.Second
	}
	return seconds(spec.TimeoutSeconds)
}

// remove ends c's workers and takes it out of the map.
func (p *Prober) remove(c *container) {
	for _, w := range c.workers {
		w.stop()
		w.counters.delete()
	}
	containers := p.pods[c.target.PodUID]
	delete(containers, c.target.Container.Name)
	if len(containers) == 0 {
		delete(p.pods, c.target.PodUID)
	}
}

// Stop implements Manager.
func (p *Prober) Stop(podUID, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.pods[podUID] {
		if name == "" || c.target.Container.Name == name {
			p.remove(c)
		}
	}
}

// StopLivenessAndStartup implements Manager. As with a kubelet their last result is
// success, for a quiet end.
func (p *Prober) StopLivenessAndStartup(podUID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.pods[podUID] {
		for _, kind := range []Kind{Liveness, Startup} {
			if w := c.workers[kind]; w != nil {
				w.stop()
			}
		}
		c.results.LivenessFailed, c.results.StartupFailed = false, false
		if w := c.workers[Startup]; w != nil && !c.results.Started {
			c.started(w)
		}
	}
}

// Results implements Manager.
func (p *Prober) Results(podUID, name string, attempt int) (Results, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.pods[podUID][name]
	if c == nil || c.target.Attempt != attempt {
		return Results{}, false
	}
	return c.results, true
}

// started opens the gate for the other probes, at once.
func (c *container) started(startup *worker) {
	c.results.Started = true
	startup.stop()
	c.results.Ready = c.workers[Readiness] == nil
	now := time.Now()
	for _, kind := range []Kind{Liveness, Readiness} {
		if w := c.workers[kind]; w != nil && w.waiting {
			w.waiting = false
			w.prober.agenda.add(w, now)
		}
	}
}

// probeContext bounds one probe.
func probeContext(parent context.Context, spec *corev1.Probe) (context.Context, context.CancelFunc) {
	return context.WithTimeout(parent, timeout(spec))
}
