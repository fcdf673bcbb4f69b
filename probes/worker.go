package probes

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// worker runs one probe of one attempt again and again, never twice at a time.
// Prober.mu guards what changes.
type worker struct {
	prober    *Prober
	container *container
	kind      Kind
	spec      *corev1.Probe
	counters  counters

	ctx    context.Context // ends with stop
	cancel context.CancelFunc
	timer  *time.Timer
	due    time.Time

	waiting bool // for the startup probe; started schedules it
	last    result
	run     int // how many times in a row last was the result
}

// result of one probe.
type result string

// The values of the metric's label "result".
const (
	success result = "successful"
	failure result = "failed"
	unknown result = "unknown" // the probe could not be run
)

func newWorker(p *Prober, c *container, kind Kind, spec *corev1.Probe) *worker {
	w := &worker{prober: p, container: c, kind: kind, spec: spec}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.counters = p.metrics.of(c.target, kind)
	return w
}

// schedule sets the next run. Not for a worker that is running.
func (w *worker) schedule(due time.Time) {
	w.due = due
	if w.timer == nil {
		w.timer = time.AfterFunc(time.Until(due), w.fire)
		return
	}
	w.timer.Reset(time.Until(due))
}

func (w *worker) stop() {
	w.cancel()
	w.timer.Stop()
}

// fire runs the probe once unless something stands against it.
func (w *worker) fire() {
	target, ok := w.begin()
	if !ok {
		return
	}
	began := time.Now()
	result, message := w.prober.probe(w.ctx, w.kind, w.spec, target)
	if w.ctx.Err() != nil {
		return // stopped meanwhile: the result is of no interest
	}
	if result != unknown {
		w.counters.observe(result, time.Since(began))
	}
	if w.end(result, message) {
		w.prober.onChange(target.PodUID)
	}
}

func (w *worker) begin() (Target, bool) {
	w.prober.mu.Lock()
	defer w.prober.mu.Unlock()
	if w.ctx.Err() != nil {
		return Target{}, false
	}
	if w.container.results.Started == (w.kind == Startup) {
		// A started container needs no startup probe, and the others wait for it.
		w.waiting = w.kind != Startup
		return Target{}, false
	}
	return w.container.target, true
}

// end takes in a result. It says whether the container's results changed.
func (w *worker) end(r result, message string) (changed bool) {
	w.prober.mu.Lock()
	defer w.prober.mu.Unlock()
	if w.ctx.Err() != nil {
		return false
	}
	before := w.container.results
	w.take(r, message)
	if w.ctx.Err() == nil {
		// as a ticker does: a run that was missed is made up for once
		next := w.due.Add(period(w.spec))
		if now := time.Now(); next.Before(now) {
			next = now
		}
		w.schedule(next)
	}
	before.Message = w.container.results.Message
	return w.container.results != before
}

// take applies the thresholds and then the kind's meaning.
func (w *worker) take(r result, message string) {
	if r == unknown {
		return // thrown away, as in a kubelet
	}
	if w.last != r {
		w.last, w.run = r, 0
	}
	w.run++
	results := &w.container.results
	if r == failure {
		results.Message = message
		if w.run < threshold(w.spec.FailureThreshold, 3) {
			return
		}
	} else if w.run < threshold(w.spec.SuccessThreshold, 1) {
		return
	}
	switch {
	case w.kind == Readiness:
		results.Ready = r == success
	case r == failure:
		results.LivenessFailed = results.LivenessFailed || w.kind == Liveness
		results.StartupFailed = results.StartupFailed || w.kind == Startup
		results.GracePeriodSeconds = w.spec.TerminationGracePeriodSeconds
		w.stop() // until there is a new attempt
	case w.kind == Startup:
		w.container.started(w)
	}
}

func threshold(n, otherwise int32) int {
	if n < 1 {
		return int(otherwise)
	}
	return int(n)
}
