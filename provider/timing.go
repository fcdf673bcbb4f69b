package provider

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// timings say where the time of pods' starts goes.
type timings struct{ steps, starts *prometheus.HistogramVec }

func newTimings() timings {
	histogram := func(name, help, label string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "vk_metal", Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}, []string{label})
	}
	return timings{
		steps:  histogram("pod_step_duration_seconds", "How long one effect of a pod's life took, by effect", "step"),
		starts: histogram("pod_start_duration_seconds", "Time from the first sight of a new pod until it first came so far", "until"),
	}
}

// timed notes how long an effect takes.
func (p *Provider) timed(step string, effect func() error) error {
	begin := time.Now()
	defer func() { p.timings.steps.WithLabelValues(step).Observe(time.Since(begin).Seconds()) }()
	return effect()
}

// How far a new pod's start comes, in order.
const (
	untilPrepared = "prepared" // slice, network, volumes and what else its containers share
	untilStarting = "starting" // systemd is asked for its first container
	untilStarted  = "started"  // which has executed its program
	untilReported = "reported" // the API server has answered to the first status that says so
)

// progress is how far a pod's first start has come; each stage is counted once.
type progress struct {
	mu       sync.Mutex
	seen     map[string]bool
	starting bool // counted in starting
}

// reached counts a stage of a pod whose whole start this agent saw.
func (w *worker) reached(stage string) {
	w.progress.mu.Lock()
	defer w.progress.mu.Unlock()
	if w.progress.seen == nil || w.progress.seen[stage] {
		return
	}
	w.progress.seen[stage] = true
	w.p.timings.starts.WithLabelValues(stage).Observe(time.Since(w.started).Seconds())
}

// beginProgress begins the count, for a pod that nothing was started of yet.
func (w *worker) beginProgress() {
	w.progress.mu.Lock()
	defer w.progress.mu.Unlock()
	w.progress.seen = map[string]bool{}
}

// beginStart says that a new pod's first container is being started; endStart, which may be
// said any number of times, that it has been reported, or that it is not to be waited for.
func (w *worker) beginStart() {
	w.progress.mu.Lock()
	defer w.progress.mu.Unlock()
	if w.progress.seen != nil && !w.progress.seen[untilReported] && !w.progress.starting {
		w.progress.starting = true
		w.p.starting.begin()
	}
}

func (w *worker) endStart() {
	w.progress.mu.Lock()
	defer w.progress.mu.Unlock()
	if w.progress.starting {
		w.progress.starting = false
		w.p.starting.end()
	}
}

// activity counts what is under way.
type activity struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when nothing is; nil while nobody has begun
}

func (a *activity) begin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n++; a.n == 1 {
		a.idle = make(chan struct{})
	}
}

func (a *activity) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n--; a.n == 0 {
		close(a.idle)
	}
}

// closed is what waits for nothing.
var closed = func() <-chan struct{} { c := make(chan struct{}); close(c); return c }()

func (a *activity) wait() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n == 0 {
		return closed
	}
	return a.idle
}

// Quiet returns a channel that is closed while no new pod's first container is being started
// and reported: for work that can wait a moment.
func (p *Provider) Quiet() <-chan struct{} { return p.starting.wait() }
