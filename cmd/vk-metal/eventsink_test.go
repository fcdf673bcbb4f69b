package main

import (
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"
)

// noSink takes events and forgets them.
type noSink struct{ record.EventSink }

func (noSink) Create(event *corev1.Event) (*corev1.Event, error) { return event, nil }

func (noSink) Update(event *corev1.Event) (*corev1.Event, error) { return event, nil }

func (noSink) Patch(event *corev1.Event, _ []byte) (*corev1.Event, error) { return event, nil }

func TestEventSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		quiet := make(chan struct{})
		s := &eventSink{EventSink: noSink{}, quiet: func() <-chan struct{} { return quiet }}
		begun := time.Now()
		send := func(want time.Duration) {
			t.Helper()
			if _, err := s.Create(&corev1.Event{}); err != nil || time.Since(begun) != want {
				t.Errorf("sent after %s, %v; want %s", time.Since(begun), err, want)
			}
		}
		time.AfterFunc(time.Second, func() { close(quiet) })
		send(time.Second) // held until it is quiet
		send(time.Second)
		quiet = make(chan struct{})
		send(3 * time.Second) // held for so long at most
		send(3 * time.Second) // and not again, while it is not quiet
		_, _ = s.Update(&corev1.Event{})
		_, _ = s.Patch(&corev1.Event{}, nil)
		send(3 * time.Second)
		close(quiet)
		send(3 * time.Second)
		quiet = make(chan struct{})
		_, _ = s.Patch(&corev1.Event{}, nil) // held anew
		send(5 * time.Second)
	})
}
