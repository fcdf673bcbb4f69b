package provider

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/probes"
	"github.com/vk-metal/vk-metal/systemd"
)

// scripts lets commands in containers take a second each, tell that they ran, and exit with
// what their last argument says.
func (w *world) scripts() (ran func() []string) {
	var list []string
	w.exec = func(ctx context.Context, r systemd.ExecRequest) (int, error) {
		if !died(ctx, nil, time.Second) && ctx.Err() != nil {
			return -1, ctx.Err()
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		list = append(list, strings.Join(r.Args, " "))
		code := 0
		_, _ = fmt.Sscan(r.Args[len(r.Args)-1], &code)
		return code, nil
	}
	return func() []string {
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		return slices.Clone(list)
	}
}

func command(args ...string) *corev1.LifecycleHandler {
	return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: args}}
}

func pause(seconds int64) *corev1.LifecycleHandler {
	return &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: seconds}}
}

func hooked(grace int64, l corev1.Lifecycle) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.TerminationGracePeriodSeconds = &grace
		p.Spec.Containers[0].Lifecycle = &l
	}
}

// sent are the signals so far.
func (w *world) sent() []string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.signals)
}

func TestPostStartHoldsTheNextContainerBack(t *testing.T) {
	for name, hook := range map[string]*corev1.LifecycleHandler{"exec": command("warm-up", "0"), "sleep": pause(1)} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				w.t = t
				w.scripts()
				w.boot("")
				begun := time.Now()
				w.create("a", func(p *corev1.Pod) {
					hooked(30, corev1.Lifecycle{PostStart: hook})(p)
					p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "second", Image: "img"})
				})
				w.until("the first starts", func() bool { return w.runs("app") })
				time.Sleep(500 * time.Millisecond)
				synctest.Wait()
				pod, _ := w.get("a")
				if w.runs("second") || pod.Status.ContainerStatuses[0].Ready {
					t.Errorf("the hook runs still: %+v", pod.Status.ContainerStatuses)
				}
				w.until("Running", w.podIs("a", corev1.PodRunning))
				w.until("the second starts", func() bool { return w.runs("second") })
				if took := time.Since(begun); took < time.Second {
					t.Errorf("after %s", took)
				}
			})
		})
	}
}

func TestFailedPostStartEndsTheContainer(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		ran := w.scripts()
		w.boot("")
		w.create("a", hooked(30, corev1.Lifecycle{PostStart: command("warm-up", "7"), PreStop: command("bye", "0")}))
		w.until("it is started again", func() bool { return len(w.started()) >= 2 })
		if !w.said("Warning FailedPostStartHook PostStartHook failed") || !w.said("Normal Killing FailedPostStartHook") {
			t.Errorf("events %q", w.events)
		}
		if got := ran(); len(got) < 2 || got[0] != "warm-up 7" || got[1] != "bye 0" {
			t.Errorf("ran %q", got) // a kubelet runs preStop here, too
		}
		if got := w.sent(); !slices.Contains(got, "app/0 SIGTERM") {
			t.Errorf("signals %q", got)
		}
	})
}

func TestPreStopComesBeforeTheSignal(t *testing.T) {
	for name, tc := range map[string]struct {
		hook  *corev1.LifecycleHandler
		grace int64
		ran   []string
		event string
		least time.Duration
		most  time.Duration
	}{
		"exec":                         {command("bye", "0"), 30, []string{"bye 0"}, "", time.Second, 2 * time.Second},
		"exec that fails":              {command("bye", "3"), 30, []string{"bye 3"}, "Warning FailedPreStopHook PreStopHook failed", time.Second, 2 * time.Second},
		"sleep":                        {pause(5), 30, nil, "", 5 * time.Second, 6 * time.Second},
		"longer than the grace":        {pause(60), 4, nil, "", 4 * time.Second, 5 * time.Second},
		"port without an owner":        {&corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromString("nobody")}}, 30, nil, "Warning FailedPreStopHook PreStopHook failed", 0, time.Second},
		"a grace period shorter still": {command("bye", "0"), 0, nil, "", 0, 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				w.t = t
				ran := w.scripts()
				w.boot("")
				w.create("a", hooked(tc.grace, corev1.Lifecycle{PreStop: tc.hook}))
				w.until("Running", w.podIs("a", corev1.PodRunning))
				begun := time.Now()
				w.delete("a", max(tc.grace, 1))
				w.until("it got its signal", func() bool { return len(w.sent()) > 0 })
				if took := time.Since(begun); took < tc.least || took > tc.most {
					t.Errorf("the signal came after %s, not between %s and %s", took, tc.least, tc.most)
				}
				if got := ran(); tc.grace > 0 && !slices.Equal(got, tc.ran) {
					t.Errorf("ran %q, want %q", got, tc.ran)
				}
				if tc.event != "" && !w.said(tc.event) {
					t.Errorf("events %q", w.events)
				}
				if got := w.sent(); got[0] != "app/0 SIGTERM" {
					t.Errorf("signals %q", got)
				}
			})
		})
	}
}

// TestPreStopIsForContainersThatAreStopped: neither one that ended by itself, nor one that
// crashed, nor one that is gone when its pod is deleted has the hook run.
func TestPreStopIsForContainersThatAreStopped(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		ran := w.scripts()
		a := w.boot("")
		w.create("a", func(p *corev1.Pod) {
			p.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
			hooked(30, corev1.Lifecycle{PreStop: command("bye", "0")})(p)
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{
				Name: "other", Image: "img", Lifecycle: &corev1.Lifecycle{PreStop: command("other", "0")},
			})
		})
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.exit(a, "app", 1)
		w.until("it is started again", func() bool { return slices.Contains(w.started(), "app/1") })
		w.exit(a, "app", 0)
		time.Sleep(time.Minute)
		w.delete("a", 30)
		w.until("gone", func() bool { _, there := w.get("a"); return !there })
		if got := ran(); !slices.Equal(got, []string{"other 0"}) {
			t.Errorf("ran %q, want the hook of the one that ran", got)
		}
		if w.said("FailedPreStopHook") {
			t.Errorf("events %q", w.events)
		}
	})
}

// TestPreStopRunsForProbesAndEvictions: whoever stops a container, the hook is run.
func TestPreStopRunsForProbesAndEvictions(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		ran := w.scripts()
		a := w.boot("")
		w.create("a", hooked(30, corev1.Lifecycle{PreStop: command("bye", "0")}))
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.mu.Lock()
		w.results["app/0"] = probes.Results{Started: true, LivenessFailed: true}
		w.mu.Unlock()
		a.onProbe("uid-a")
		w.until("it is started again", func() bool { return slices.Contains(w.started(), "app/1") })
		if got := ran(); !slices.Equal(got, []string{"bye 0"}) {
			t.Errorf("after the probe failed: ran %q", got)
		}
		if a.provider.Evict("uid-a", "for want of memory", 20*time.Second) == nil {
			t.Fatal("not evicted")
		}
		w.until("evicted", w.podIs("a", corev1.PodFailed))
		if got := ran(); !slices.Equal(got, []string{"bye 0", "bye 0"}) {
			t.Errorf("after the eviction: ran %q", got)
		}
	})
}

// TestHTTPHooks asks a real server, by HTTPS where it only speaks HTTP.
func TestHTTPHooks(t *testing.T) {
	asked := make(chan string, 10)
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path + " " + r.Header.Get("X-Why")
		http.Error(rw, "any status will do", http.StatusInternalServerError)
	}))
	defer server.Close()
	host, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	get := func(path string, scheme corev1.URIScheme) *corev1.LifecycleHandler {
		return &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{
			Host: host, Port: intstr.Parse(port), Path: path, Scheme: scheme, HTTPHeaders: []corev1.HTTPHeader{{Name: "X-Why", Value: "hook"}},
		}}
	}
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.boot("")
		w.create("a", hooked(30, corev1.Lifecycle{PostStart: get("/begin", "HTTP"), PreStop: get("/end", "HTTPS")}))
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.until("ready", func() bool { pod, _ := w.get("a"); return pod.Status.ContainerStatuses[0].Ready })
		w.delete("a", 30)
		w.until("gone", func() bool { _, there := w.get("a"); return !there })
		if w.said("FailedPostStartHook") || w.said("FailedPreStopHook") || !w.said("Warning LifecycleHTTPFallback request to HTTPS lifecycle hook "+server.Listener.Addr().String()) {
			t.Errorf("events %q", w.events)
		}
	})
	if first, second := <-asked, <-asked; first != "/begin hook" || second != "/end hook" {
		t.Errorf("asked for %q, %q", first, second)
	}
}

// TestRestartRulesOfAContainer: its own rules and policy go before the pod's.
func TestRestartRulesOfAContainer(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		w.create("a", func(p *corev1.Pod) {
			p.Spec.RestartPolicy = corev1.RestartPolicyAlways
			c := &p.Spec.Containers[0]
			c.RestartPolicy = ptr.To(corev1.ContainerRestartPolicyNever)
			c.RestartPolicyRules = []corev1.ContainerRestartRule{{
				Action:    corev1.ContainerRestartRuleActionRestart,
				ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
			}}
		})
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.exit(a, "app", 42)
		w.until("the rule restarts it", func() bool { return slices.Contains(w.started(), "app/1") })
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.exit(a, "app", 43)
		w.until("its policy does not", w.podIs("a", corev1.PodFailed))
		time.Sleep(time.Hour)
		if got := w.started(); !slices.Equal(got, []string{"app/0", "app/1"}) {
			t.Errorf("started %v", got)
		}
	})
}

// started are the processes that were ever started.
func (w *world) started() []string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.starts)
}
