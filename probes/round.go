package probes

import (
	"time"
)

// roundSize bounds how long a call waits for others of its round: each takes some 50 µs.
const roundSize = 32

// round is calls that begin together, in one goroutine: processor time of short
// connections is mostly that of waking up.
type round struct {
	calls   []*call
	events  []uint32 // that each waits for
	scratch *scratch
	poller  *poller
}

// runCalls returns when all are over or handed over.
func runCalls(calls []*call) {
	r := &round{calls: calls, events: make([]uint32, len(calls)), scratch: &scratch{}}
	for _, c := range calls {
		c.start(r.scratch)
	}
	for i, c := range calls {
		if !c.over() {
			r.events[i] = c.advance(r.scratch) // the first may have their answers by now
		}
	}
	if err := r.waitForAll(); err != nil {
		r.each(func(c *call) { c.fail(c.opError("poll", err)) })
	}
}

// waitForAll fails when the system has no descriptor left, or the like.
func (r *round) waitForAll() (err error) {
	if _, some := r.earliest(); !some {
		return nil
	}
	if r.poller, err = newPoller(len(r.calls)); err != nil {
		return err
	}
	defer r.poller.close()
	for i, c := range r.calls {
		if c.over() {
			continue
		}
		if err := r.poller.watch(c.fd, i, r.events[i], false); err != nil {
			return err
		}
	}
	for {
		until, some := r.earliest()
		if !some {
			return nil
		}
		if err := r.wait(until); err != nil {
			return err
		}
	}
}

// earliest is the next deadline.
func (r *round) earliest() (until time.Time, some bool) {
	for _, c := range r.calls {
		if !c.over() && (!some || c.deadline.Before(until)) {
			until, some = c.deadline, true
		}
	}
	return until, some
}

// wait goes on with those that are ready, and then ends those that are late.
func (r *round) wait(until time.Time) error {
	ready, err := r.poller.wait(until)
	if err != nil {
		return err
	}
	for _, e := range ready {
		if err := r.advance(int(e.Fd)); err != nil {
			return err
		}
	}
	now := time.Now()
	r.each(func(c *call) {
		if !c.deadline.After(now) {
			c.expire()
		}
	})
	return nil
}

func (r *round) advance(i int) error {
	c, before := r.calls[i], r.events[i]
	r.events[i] = c.advance(r.scratch)
	if c.over() || r.events[i] == before {
		return nil
	}
	return r.poller.watch(c.fd, i, r.events[i], true)
}

// each calls end for those that are not over.
func (r *round) each(end func(*call)) {
	for _, c := range r.calls {
		if !c.over() {
			end(c)
		}
	}
}
