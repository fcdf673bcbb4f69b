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
	counters  *counters

	ctx    context.Context // ends with stop
	cancel context.CancelFunc
	due    time.Time
	place  int    // in the agenda, or -1
	route  *route // of the last run that was a call

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
	w := &worker{prober: p, container: c, kind: kind, spec: spec, place: -1}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.counters = p.metrics.of(c.target, kind)
	return w
}

// stop ends the runs; what a run that goes on brings is of no interest.
func (w *worker) stop() {
	w.cancel()
	w.prober.agenda.remove(w)
}

// run is one run of a worker's probe.
type run struct {
	*worker
	target Target
	began  time.Time
}

// begin is nil if something stands against a run.
func (w *worker) begin() *run {
	if w.container.results.Started == (w.kind == Startup) {
		// A started container needs no startup probe, and the others wait for it.
		w.waiting = w.kind != Startup
		return nil
	}
	return &run{worker: w, target: w.container.target, began: time.Now()}
}

// call is nil if the probe is none for a round. Runs of a worker come one after the other.
func (r *run) call() *call {
	if r.route == nil || r.route.podIP != r.target.PodIP {
		r.route = routeOf(r.spec, r.target)
	}
	if r.route == nil {
		return nil
	}
	return newCall(r.route, timeout(r.spec), r.called)
}

// called takes in a call's outcome. Only a success wakes nobody but the worker itself.
func (r *run) called(o outcome, err error) {
	if err == nil && o.result == success && !o.warning {
		r.finish(o, nil)
		return
	}
	go r.finish(o, err)
}

// fire runs a probe that is not a call.
func (r *run) fire() { r.finish(r.prober.try(r.ctx, r.spec, r.target)) }

// finish takes in the outcome of the first try.
func (r *run) finish(o outcome, err error) {
	result, message := r.prober.conclude(r.ctx, r.kind, r.spec, r.target, o, err)
	if r.ctx.Err() != nil {
		return // stopped meanwhile
	}
	if r.end(result, message, time.Since(r.began)) {
		go r.prober.onChange(r.target.PodUID)
	}
}

// end takes in a result. It says whether the container's results changed.
func (w *worker) end(r result, message string, took time.Duration) (changed bool) {
	w.prober.mu.Lock()
	defer w.prober.mu.Unlock()
	if w.ctx.Err() != nil {
		return false
	}
	if r != unknown {
		w.counters.observe(r, took)
	}
	before := w.container.results
	w.take(r, message)
	if w.ctx.Err() == nil {
		// as a ticker does: a run that was missed is made up for once
		next := w.prober.agenda.onGrid(w.due.Add(period(w.spec)))
		if now := time.Now(); next.Before(now) {
			next = now
		}
		w.prober.agenda.add(w, next)
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
