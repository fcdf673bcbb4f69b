package main

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"
)

// eventPatience bounds how long events are held back.
const eventPatience = 2 * time.Second

// eventSink lets the starts of new pods and the statuses that report them go first: a start has
// three events, each of which costs the API server as much as its status. While pods are started
// without a pause events are held back once, for eventPatience; their order stays. The
// broadcaster calls it from one goroutine.
type eventSink struct {
	record.EventSink
	// quiet returns a channel that is closed while nothing goes first.
	quiet func() <-chan struct{}
	busy  time.Time // since when something has gone first; zero for nothing
}

func (s *eventSink) await() {
	quiet := s.quiet()
	select {
	case <-quiet:
		s.busy = time.Time{}
		return
	default:
	}
	if s.busy.IsZero() {
		s.busy = time.Now()
	}
	left := eventPatience - time.Since(s.busy)
	if left <= 0 {
		return
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-quiet:
		s.busy = time.Time{}
	case <-timer.C:
	}
}

// Create implements record.EventSink.
func (s *eventSink) Create(event *corev1.Event) (*corev1.Event, error) {
	s.await()
	return s.EventSink.Create(event)
}

// Update implements record.EventSink.
func (s *eventSink) Update(event *corev1.Event) (*corev1.Event, error) {
	s.await()
	return s.EventSink.Update(event)
}

// Patch implements record.EventSink.
func (s *eventSink) Patch(before *corev1.Event, data []byte) (*corev1.Event, error) {
	s.await()
	return s.EventSink.Patch(before, data)
}

// quiet is closed while no pod is being started.
func (a *agent) quiet() <-chan struct{} { return a.pods.provider.Quiet() }
