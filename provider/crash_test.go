package provider

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/endpoints"
)

// life is a pod's whole story: it runs, crashes, runs again, and is deleted. agent is
// called for the agent of the moment.
func life(w *world, agent func() *agent, change func(*corev1.PodSpec)) {
	hook := &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 1}}}
	w.create("a", func(p *corev1.Pod) {
		p.Spec.InitContainers = []corev1.Container{{Name: "init", Image: "img"}}
		p.Spec.Containers[0].Lifecycle = hook
		change(&p.Spec)
	})
	w.until("init runs", func() bool { return w.runs("init") })
	w.exit(agent(), "init", 0)
	w.until("Running", w.podIs("a", corev1.PodRunning))
	w.exit(agent(), "app", 1)
	w.until("restarted", func() bool {
		pod, _ := w.get("a")
		cs := pod.Status.ContainerStatuses[0]
		return cs.RestartCount == 1 && cs.State.Running != nil && cs.Ready
	})
	w.mu.Lock()
	w.offers["uid-a"] = []endpoints.Endpoint{{Slice: "s", Terminating: true}}
	w.mu.Unlock()
	w.delete("a", 5)
	w.until("object gone", func() bool { _, ok := w.get("a"); return !ok })
	w.until("nothing left", func() bool { return len(w.left()) == 0 })
}

func (w *world) runs(container string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, u := range w.units {
		if u.running && u.Identity.Container == container {
			return true
		}
	}
	return false
}

// TestKilledAtAnyStepConverges kills the agent at every step that a whole life has, and
// starts it again: the story goes on to the same end, with no start too many.
func TestKilledAtAnyStepConverges(t *testing.T) {
	var steps []string
	first := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		first.t = t
		a := first.boot("")
		life(first, func() *agent { return a }, plain)
		for _, s := range a.steps {
			if !slices.Contains(steps, s) {
				steps = append(steps, s)
			}
		}
	})
	unreached := []string{"kill/before", "kill/after", "resize/before", "resize/after"} // no deaf process, no resize
	for _, s := range Steps() {
		if !slices.Contains(steps, s) && !slices.Contains(unreached, s) {
			t.Errorf("step %s is listed and was not passed", s)
		}
	}
	for _, s := range steps {
		if !slices.Contains(Steps(), s) {
			t.Errorf("step %s is not listed", s)
		}
	}
	want := []string{"init/0", "app/0", "app/1"}
	if !slices.Equal(first.starts, want) {
		t.Fatalf("starts without a crash: %v", first.starts)
	}
	convergesAfter(t, steps, want, plain)
	t.Run("one PID namespace", func(t *testing.T) {
		share := func(s *corev1.PodSpec) { s.ShareProcessNamespace = &[]bool{true}[0] }
		convergesAfter(t, steps, append([]string{".pause/0"}, want...), share)
	})
	t.Logf("%d steps", len(steps))
}

func plain(*corev1.PodSpec) {}

// convergesAfter kills the agent at each of the steps of a life.
func convergesAfter(t *testing.T, steps, want []string, change func(*corev1.PodSpec)) {
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				w.t = t
				current, replaced := w.boot(step), make(chan struct{})
				go func() {
					defer close(replaced)
					<-current.done
					time.Sleep(time.Second)
					again := w.boot("")
					w.mu.Lock()
					defer w.mu.Unlock()
					current = again
				}()
				life(w, func() *agent { w.mu.Lock(); defer w.mu.Unlock(); return current }, change)
				<-replaced
				w.until("nothing left", func() bool { return len(w.left()) == 0 })
			})
			if !slices.Equal(w.starts, want) {
				t.Errorf("starts %v, want %v", w.starts, want)
			}
			if len(w.doubled) > 0 {
				t.Errorf("started beside a living attempt: %v", w.doubled)
			}
		})
	}
}
