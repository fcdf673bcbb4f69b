package provider

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

// restartsAll is a pod that never restarts but for exits of its container "source" with 42:
// all its containers restart then. "other" ignores TERM and has a preStop hook.
func (w *world) restartsAll() {
	always, never := corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever
	w.deaf["other"] = true
	w.behave = func(u *fakeUnit) {
		if u.Identity.Container == "init" {
			w.end(u, 0, 0)
		}
	}
	w.create("a", func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.InitContainers = []corev1.Container{{Name: "init", Image: "img"}, {Name: "side", Image: "img", RestartPolicy: &always}}
		p.Spec.Containers = []corev1.Container{{
			Name: "source", Image: "img", RestartPolicy: &never,
			RestartPolicyRules: []corev1.ContainerRestartRule{{
				Action:    corev1.ContainerRestartRuleActionRestartAllContainers,
				ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
			}},
		}, {Name: "other", Image: "img", Lifecycle: &corev1.Lifecycle{PreStop: command("bye", "0")}}}
	})
}

func (w *world) condition(pod string, kind corev1.PodConditionType) corev1.PodCondition {
	p, _ := w.get(pod)
	for _, c := range p.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.PodCondition{}
}

// restarted says that all containers have been started so many times more, and are ready.
func (w *world) restarted(times int32) func() bool {
	return func() bool {
		pod, ok := w.get("a")
		all := slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses)
		return ok && len(all) == 4 && w.condition("a", corev1.PodReady).Status == corev1.ConditionTrue &&
			!slices.ContainsFunc(all, func(cs corev1.ContainerStatus) bool { return cs.RestartCount != times })
	}
}

// startedTwice says whether the processes so far are two rounds of the pod: the init
// container, the sidecar, then the main ones in any order.
func (w *world) startedTwice() bool {
	got := slices.Clone(w.started())
	if len(got) != 8 {
		return false
	}
	slices.Sort(got[2:4])
	slices.Sort(got[6:])
	return slices.Equal(got, []string{"init/0", "side/0", "other/0", "source/0", "init/1", "side/1", "other/1", "source/1"})
}

func TestRestartAllContainers(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		ran := w.scripts()
		a := w.boot("")
		w.restartsAll()
		w.until("all run", w.restarted(0))
		if c := w.condition("a", corev1.AllContainersRestarting); c.Status != corev1.ConditionFalse {
			t.Errorf("before: %+v", c)
		}
		before, _ := w.get("a")
		exited := time.Now()
		w.exit(a, "source", 42)
		w.until("the restart is told of", func() bool {
			return w.condition("a", corev1.AllContainersRestarting).Status == corev1.ConditionTrue
		})
		if c := w.condition("a", corev1.AllContainersRestarting); c.Reason != "RestartAllContainersStarted" || c.Message == "" {
			t.Errorf("meanwhile: %+v", c)
		}
		w.until("all run again", w.restarted(1))
		if took := time.Since(exited); took > 5*time.Second {
			t.Errorf("after %s, although nothing has a grace period", took)
		}
		after, _ := w.get("a")
		if after.Status.PodIP != before.Status.PodIP || after.Status.Phase != corev1.PodRunning {
			t.Errorf("status %+v", after.Status)
		}
		for name, want := range map[string]string{"source": "Error", "other": podplan.RestartingAll, "side": podplan.RestartingAll, "init": "Completed"} {
			status, _ := statusOf(after, name)
			if end := status.LastTerminationState.Terminated; end == nil || end.Reason != want {
				t.Errorf("%s ended as %+v, want %s", name, end, want)
			}
		}
		if c := w.condition("a", corev1.AllContainersRestarting); c.Status != corev1.ConditionFalse {
			t.Errorf("after: %+v", c)
		}
		if got := ran(); len(got) > 0 {
			t.Errorf("hooks ran: %q", got)
		}
		if !w.startedTwice() {
			t.Errorf("starts %v", w.starts)
		}
		w.delete("a", 5)
		w.until("nothing left", func() bool { return len(w.left()) == 0 })
	})
}

// TestRestartAllContainersKilledAtEachStep kills the agent after so many steps of that
// story, and starts it again.
func TestRestartAllContainersKilledAtEachStep(t *testing.T) {
	for n := 1; ; n += 3 { // each third: the steps of a start come for each container
		reached := false
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				w.t = t
				current := w.boot("")
				current.mu.Lock()
				current.dieAfter = n
				current.mu.Unlock()
				over, replaced := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(replaced)
					select {
					case <-current.done:
					case <-over:
						return
					}
					time.Sleep(time.Second)
					again := w.boot("")
					w.mu.Lock()
					defer w.mu.Unlock()
					current, reached = again, true
				}()
				agent := func() *agent { w.mu.Lock(); defer w.mu.Unlock(); return current }
				w.restartsAll()
				w.until("all run", w.restarted(0))
				w.exit(agent(), "source", 42)
				w.until("all run again", w.restarted(1))
				close(over)
				<-replaced
				if !w.startedTwice() {
					t.Errorf("starts %v", w.starts)
				}
			})
			if len(w.doubled) > 0 {
				t.Errorf("started beside a living attempt: %v", w.doubled)
			}
		})
		if !reached {
			t.Logf("%d steps at most", n-1)
			return
		}
	}
}
