package provider

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/endpoints"
)

// heldPod boots an agent with a running pod that a slice offers, and deletes the pod.
func heldPod(w *world) (*agent, time.Time) {
	a := w.boot("")
	w.create("a", nil)
	w.until("Running", w.podIs("a", corev1.PodRunning))
	w.offer(a, "uid-a", endpoints.Endpoint{Slice: "web-1", Ready: true})
	w.delete("a", 20)
	return a, time.Now()
}

func (w *world) said(text string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Contains(strings.Join(w.events, "\n"), text)
}

func TestStopIsHeldUntilClientsAreElsewhere(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a, begun := heldPod(w)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if !w.runs("app") || !w.said("Normal StopHeld") || w.said("Killing") {
			t.Fatalf("the pod does not wait: %v", w.events)
		}
		w.offer(a, "uid-a", endpoints.Endpoint{Slice: "web-1", Terminating: true})
		w.until("object gone", func() bool { _, ok := w.get("a"); return !ok })
		if took := time.Since(begun); took < 4*time.Second || took > 5*time.Second {
			t.Errorf("deleted after %s, the withdrawal came after 3 s and settles for 1 s", took)
		}
		if w.said("StopHeldTooLong") {
			t.Errorf("events: %v", w.events)
		}
	})
}

func TestHoldIsBounded(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.deaf["app"] = true
		_, begun := heldPod(w)
		w.until("killing", func() bool { return w.said("Killing") })
		if took := time.Since(begun); took < 10*time.Second || took > 11*time.Second {
			t.Errorf("held for %s, half of the grace period is 10 s", took)
		}
		w.until("object gone", func() bool { _, ok := w.get("a"); return !ok })
		if took := time.Since(begun); took < 20*time.Second || took > 21*time.Second {
			t.Errorf("deleted after %s, the grace period is 20 s", took)
		}
		if !w.said("Warning StopHeldTooLong") {
			t.Errorf("events: %v", w.events)
		}
	})
}

// TestHoldGoesOnWithTheNextAgent: the time that an agent before has waited counts.
func TestHoldGoesOnWithTheNextAgent(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a, begun := heldPod(w)
		time.Sleep(4 * time.Second)
		a.stop()
		w.boot("")
		w.until("object gone", func() bool { _, ok := w.get("a"); return !ok })
		if took := time.Since(begun); took < 10*time.Second || took > 11*time.Second {
			t.Errorf("deleted after %s, want half of the grace period, 10 s\n%v", took, w.events)
		}
	})
}

func TestContainerThatEndsInAHoldStaysDown(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a, begun := heldPod(w)
		time.Sleep(time.Second)
		w.exit(a, "app", 1)
		w.until("object gone", func() bool { _, ok := w.get("a"); return !ok })
		if took := time.Since(begun); took > 2*time.Second || len(w.starts) != 1 {
			t.Errorf("deleted after %s, starts %v", took, w.starts)
		}
	})
}

func TestHoldWaitsForSlicesThatAreBeingRead(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.reading = true
		_, _ = heldPod(w)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !w.runs("app") {
			t.Fatal("stopped before the slices were known")
		}
		w.mu.Lock()
		w.reading, w.offers["uid-a"] = false, nil
		w.mu.Unlock()
		begun := time.Now()
		w.until("object gone", func() bool { _, ok := w.get("a"); return !ok })
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("deleted %s after the slices were known", took)
		}
	})
}

func TestNothingIsHeldWhereSlicesAreForbidden(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		var told atomic.Int32
		w.forbidden = true
		w.facts = func(d *Deps) { d.Hold.Forbidden = func() { told.Add(1) } }
		w.boot("")
		for _, name := range []string{"a", "b"} {
			w.create(name, nil)
			w.until("Running", w.podIs(name, corev1.PodRunning))
		}
		if n := told.Load(); n != 0 {
			t.Errorf("told %d times before a pod ends", n)
		}
		for _, name := range []string{"a", "b"} {
			begun := time.Now()
			w.delete(name, 30)
			w.until("gone", func() bool { _, there := w.get(name); return !there })
			if took := time.Since(begun); took > time.Second {
				t.Errorf("held for %s", took)
			}
		}
		if n := told.Load(); n != 1 {
			t.Errorf("told %d times", n)
		}
	})
}
