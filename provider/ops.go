package provider

import (
	"context"
	"slices"
	"strings"
	"time"
)

// op is one piece of work that a pod worker has going beside its loop: a pull, a network
// set-up, a kill. Its key names what it is for; there is at most one of a key.
type op struct {
	running  bool
	done     bool // result is valid
	value    any
	err      error
	failures int
	retryAt  time.Time
	cancel   context.CancelFunc
	outdated bool // what it has read has changed since it began
}

// maxRetry bounds the doubling delay between two tries. Images are asked for at a steady
// rate: the store answers with ErrImagePull or ImagePullBackOff, as a kubelet shows it. The
// API server is asked soon again however long it was away: statuses must catch up.
const (
	maxRetry    = 2 * time.Minute
	imageRetry  = 5 * time.Second
	apiRetry    = 200 * time.Millisecond
	maxAPIRetry = 2 * time.Second
)

// ops is a worker's set of operations. The worker's lock guards it.
type ops map[string]*op

// begin starts fn unless it runs, has succeeded, or waits for its retry. It returns the
// operation, whose fields may be read until the worker's lock is given up.
func (w *worker) begin(key string, retry time.Duration, fn func(ctx context.Context) (any, error)) *op {
	w.mu.Lock()
	defer w.mu.Unlock()
	o := w.ops[key]
	if o == nil {
		o = &op{}
		w.ops[key] = o
	}
	if o.running || o.done || w.closed {
		return &op{running: o.running, done: o.done, value: o.value, err: o.err}
	}
	if wait := time.Until(o.retryAt); wait > 0 {
		w.wakeAt(o.retryAt)
		return &op{err: o.err}
	}
	ctx, cancel := context.WithCancel(w.ctx)
	o.running, o.cancel = true, cancel
	w.group.Go(func() {
		defer cancel()
		value, err := fn(ctx)
		w.finish(o, retry, value, err)
	})
	return &op{running: true, err: o.err}
}

func (w *worker) finish(o *op, retry time.Duration, value any, err error) {
	w.mu.Lock()
	o.running, o.cancel = false, nil
	o.value, o.err, o.done = value, err, err == nil
	if err != nil {
		o.failures++
		o.retryAt = time.Now().Add(min(retry<<min(o.failures-1, 6), longest(retry)))
	}
	if o.outdated {
		o.outdated, w.changed = false, true
	}
	w.mu.Unlock()
	w.wakeUp()
}

// longest is what a delay that begins with retry grows to.
func longest(retry time.Duration) time.Duration {
	switch retry {
	case imageRetry:
		return imageRetry // the image store has a back-off of its own
	case apiRetry:
		return maxAPIRetry
	}
	return maxRetry
}

// renew drops an operation's result, so that it can be begun anew; one that runs or has
// failed goes on as it is, with its delay.
func (w *worker) renew(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if o := w.ops[key]; o != nil && o.done {
		delete(w.ops, key)
	}
}

// forget drops an operation's result, so that it can be begun anew; a running one goes on.
func (w *worker) forget(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if o := w.ops[key]; o != nil && !o.running {
		delete(w.ops, key)
	}
}

// outdate forgets the operations with names that begin with one of the prefixes. One that
// runs goes on, and when it is done the worker is told once more that something changed.
func (w *worker) outdate(prefixes ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, o := range w.ops {
		switch {
		case !slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(key, prefix) }):
		case o.running:
			o.outdated = true
		default:
			delete(w.ops, key)
		}
	}
}

// retryNow lets failed operations with this prefix run at once: what they lacked may be there.
func (w *worker) retryNow(match func(key string) bool) {
	w.mu.Lock()
	for key, o := range w.ops {
		if !o.running && !o.done && match(key) {
			o.retryAt = time.Time{}
		}
	}
	w.mu.Unlock()
	w.wakeUp()
}

// cancelOps ends running operations that match; their results are errors.
func (w *worker) cancelOps(match func(key string) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, o := range w.ops {
		if o.running && match(key) {
			o.cancel()
		}
	}
}
