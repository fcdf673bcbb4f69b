package provider

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

func TestShutdownEndsPodsInOrder(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		hook := &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 3}}}
		named := func(container string, priority int32) func(*corev1.Pod) {
			return func(p *corev1.Pod) {
				p.Spec.Priority, p.Spec.Containers[0].Name, p.Spec.Containers[0].Lifecycle = ptr.To(priority), container, hook
				p.Spec.TerminationGracePeriodSeconds = ptr.To(int64(60))
			}
		}
		w.deaf["slow"] = true
		w.create("ordinary", named("plain", 0))
		w.create("slow", named("slow", 1000))
		w.create("critical", named("vital", podplan.SystemCritical))
		for _, name := range []string{"ordinary", "slow", "critical"} {
			w.until("Running", w.podIs(name, corev1.PodRunning))
		}
		w.until("critical runs", func() bool { return w.runs("vital") })
		begun, over := time.Now(), make(chan time.Duration, 1)
		go func() {
			a.provider.Shutdown(t.Context(), 20*time.Second, 8*time.Second)
			over <- time.Since(begun)
		}()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if w.runs("plain") || !w.runs("slow") || !w.runs("vital") {
			t.Error("after 5 s the ordinary pods' hooks are over, and the critical pod's has not begun")
		}
		w.create("late", nil)
		w.until("refused", w.podIs("late", corev1.PodFailed))
		if pod, _ := w.get("late"); pod.Status.Reason != "NodeShutdown" {
			t.Errorf("reason %q", pod.Status.Reason)
		}
		if took := <-over; took < 15*time.Second || took > 17*time.Second {
			t.Errorf("took %s: 12 s for the deaf one, then 3 s of the critical one's hook", took)
		}
		for _, name := range []string{"ordinary", "slow", "critical"} {
			pod, _ := w.get(name)
			disrupted := false
			for _, c := range pod.Status.Conditions {
				disrupted = disrupted || c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == corev1.PodReasonTerminationByKubelet
			}
			if pod.Status.Phase != corev1.PodFailed || pod.Status.Reason != "Terminated" || pod.Status.Message != shutdownMessage || !disrupted {
				t.Errorf("%s: %s %s %q, disrupted %t", name, pod.Status.Phase, pod.Status.Reason, pod.Status.Message, disrupted)
			}
		}
		a.provider.ShutdownCancelled()
		w.create("again", nil)
		w.until("admitted", w.podIs("again", corev1.PodRunning))
	})
}

// TestEvictionOutlivesTheAgent: what one agent has begun to end, the next one does not
// restart.
func TestEvictionOutlivesTheAgent(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.deaf["app"] = true
		a := w.boot("")
		w.create("a", nil)
		w.until("Running", w.podIs("a", corev1.PodRunning))
		ctx, cancel := context.WithCancel(t.Context())
		go a.provider.Shutdown(ctx, 20*time.Second, 0)
		time.Sleep(5 * time.Second)
		a.stop()
		cancel()
		w.boot("")
		w.until("Failed", w.podIs("a", corev1.PodFailed))
		if pod, _ := w.get("a"); pod.Status.Reason != "Terminated" || len(w.starts) != 1 {
			t.Errorf("reason %q, starts %v", pod.Status.Reason, w.starts)
		}
	})
}
