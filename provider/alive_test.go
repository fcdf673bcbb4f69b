package provider

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestAliveTellsOfAHungWorker lets a worker hang in the middle of a start; the agent is
// alive before, alive while the start may still be slow, and not any more after that.
func TestAliveTellsOfAHungWorker(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		w.create("a", nil)
		w.until("Running", w.podIs("a", corev1.PodRunning))
		time.Sleep(time.Hour)
		if err := a.provider.Alive(); err != nil {
			t.Errorf("after an idle hour: %v", err)
		}
		hung := make(chan struct{})
		a.provider.deps.StepHook = func(step string) {
			if step == "record/before" {
				<-hung
			}
		}
		w.create("b", nil)
		time.Sleep(lookTakes - 10*time.Second)
		if err := a.provider.Alive(); err != nil {
			t.Errorf("within the bound: %v", err)
		}
		time.Sleep(time.Minute)
		if err := a.provider.Alive(); err == nil || !strings.Contains(err.Error(), "has been looking at it for") {
			t.Errorf("Alive = %v with a hung worker", err)
		}
		close(hung)
		w.until("Running", w.podIs("b", corev1.PodRunning))
		if err := a.provider.Alive(); err != nil {
			t.Errorf("after it went on: %v", err)
		}
	})
}

// TestAliveTellsOfASilentReader has the reader of unit events stop beating.
func TestAliveTellsOfASilentReader(t *testing.T) {
	p := &Provider{}
	if err := p.Alive(); err != nil {
		t.Errorf("before Run: %v", err)
	}
	p.reader.at = time.Now().Add(-readerSilent - time.Second)
	if err := p.Alive(); err == nil || !strings.Contains(err.Error(), "silent for 31s") {
		t.Errorf("Alive = %v", err)
	}
	p.reader.beat()
	if err := p.Alive(); err != nil {
		t.Errorf("after a beat: %v", err)
	}
}
