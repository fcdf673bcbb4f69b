package provider

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// withSidecars adds two, the names in the order of their start.
func withSidecars(hook *corev1.LifecycleHandler) func(*corev1.Pod) {
	always := corev1.ContainerRestartPolicyAlways
	return func(p *corev1.Pod) {
		for _, name := range []string{"one", "two"} {
			c := corev1.Container{Name: name, Image: "img", RestartPolicy: &always}
			if hook != nil {
				c.Lifecycle = &corev1.Lifecycle{PreStop: hook}
			}
			p.Spec.InitContainers = append(p.Spec.InitContainers, c)
		}
	}
}

// TestSidecarsEndInReverseOrderWithinOneGracePeriod: each has its turn while the grace period
// lasts; then all that is left is asked to stop at once, and has two seconds.
func TestSidecarsEndInReverseOrderWithinOneGracePeriod(t *testing.T) {
	for name, tc := range map[string]struct {
		deaf        []string
		want        []string
		least, most time.Duration
	}{
		"all do as they are told": {nil, []string{"app/0 SIGTERM", "two/0 SIGTERM", "one/0 SIGTERM"}, 0, time.Second},
		"none does": {
			[]string{"app", "one", "two"},
			[]string{"app/0 SIGTERM", "one/0 SIGTERM", "two/0 SIGTERM", "app/0 SIGKILL", "one/0 SIGKILL", "two/0 SIGKILL"},
			12 * time.Second, 13 * time.Second,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				w.t = t
				for _, c := range tc.deaf {
					w.deaf[c] = true
				}
				w.boot("")
				w.create("a", withSidecars(nil))
				w.until("Running", w.podIs("a", corev1.PodRunning))
				w.delete("a", 10)
				begun := time.Now()
				w.until("object gone", func() bool { _, ok := w.get("a"); return !ok })
				if took := time.Since(begun); took < tc.least || took > tc.most {
					t.Errorf("gone after %v, not between %v and %v", took, tc.least, tc.most)
				}
				got := w.sent()
				if tc.deaf != nil { // at one moment each
					slices.Sort(got)
					slices.Sort(tc.want)
				}
				if !slices.Equal(got, tc.want) {
					t.Errorf("signals %q, want %q", got, tc.want)
				}
			})
		})
	}
}

// TestHooksOfSidecarsDoNotWait: they run when the pod begins to end, as under a kubelet.
func TestHooksOfSidecarsDoNotWait(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		ran := w.scripts()
		w.deaf["app"] = true
		a := w.boot("")
		w.create("a", withSidecars(command("bye", "0")))
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.delete("a", 30)
		time.Sleep(5 * time.Second)
		if got := ran(); len(got) != 2 {
			t.Errorf("hooks that ran: %q", got)
		}
		if got := w.sent(); !slices.Equal(got, []string{"app/0 SIGTERM"}) {
			t.Errorf("signals %q", got)
		}
		w.exit(a, "app", 0)
		w.until("object gone", func() bool { _, ok := w.get("a"); return !ok })
		if got := w.sent(); !slices.Equal(got, []string{"app/0 SIGTERM", "two/0 SIGTERM", "one/0 SIGTERM"}) {
			t.Errorf("signals %q", got)
		}
	})
}

// TestNobodyElseHoldsSidecarsBack: a shell that was left open for debugging is none of their business.
func TestNobodyElseHoldsSidecarsBack(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.deaf["shell"] = true
		w.boot("")
		w.create("a", func(p *corev1.Pod) {
			withSidecars(nil)(p)
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "shell", Image: "img"}}}
		})
		w.until("the shell runs", func() bool { return w.runs("shell") && w.runs("app") })
		w.delete("a", 30)
		w.until("the sidecars end", func() bool { return !w.runs("one") })
		if !w.runs("shell") {
			t.Error("they waited for the shell")
		}
	})
}

// TestStopSignalIsSentOnce: to many programs a second one means to end at once.
func TestStopSignalIsSentOnce(t *testing.T) {
	for name, disturb := range map[string]func(*world, *agent){
		"a shorter grace period": func(w *world, _ *agent) { w.delete("a", 20) },
		"the next agent": func(w *world, a *agent) {
			a.stop()
			w.boot("")
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				w.t = t
				w.deaf["app"] = true
				a := w.boot("")
				w.create("a", nil)
				w.until("Running", w.podIs("a", corev1.PodRunning))
				w.delete("a", 60)
				w.until("it is asked to stop", func() bool { return len(w.sent()) > 0 })
				disturb(w, a)
				w.until("object gone", func() bool { _, ok := w.get("a"); return !ok })
				if got := w.sent(); !slices.Equal(got, []string{"app/0 SIGTERM", "app/0 SIGKILL"}) {
					t.Errorf("signals %q", got)
				}
			})
		})
	}
}
