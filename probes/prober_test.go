package probes

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
)

// fakeExecer answers exec probes; the first word of a command says which.
type fakeExecer struct {
	mu     sync.Mutex
	codes  map[string]int
	hang   bool
	broken error
	runs   []string // "<word> <seconds since the start>"
	began  time.Time
}

func (f *fakeExecer) ExecProbe(ctx context.Context, _ Target, command []string) (int, []byte, error) {
	f.mu.Lock()
	f.runs = append(f.runs, fmt.Sprintf("%s %g", command[0], time.Since(f.began).Seconds()))
	code, hang, broken := f.codes[command[0]], f.hang, f.broken
	f.mu.Unlock()
	if hang {
		<-ctx.Done()
		return 0, nil, ctx.Err()
	}
	return code, []byte("output of " + command[0]), broken
}

func (f *fakeExecer) set(word string, code int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.codes[word] = code
}

func (f *fakeExecer) misbehave(hang bool, broken error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hang, f.broken = hang, broken
}

func (f *fakeExecer) log() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.runs, ", ")
}

// fixture is a prober inside a synctest bubble.
type fixture struct {
	*Prober
	execer  *fakeExecer
	events  []string
	changes int
}

func newFixture(options ...Option) *fixture {
	f := &fixture{execer: &fakeExecer{codes: map[string]int{}, began: time.Now()}}
	f.Prober = New(f.execer, options...)
	f.OnChange(func(string) {
		f.execer.mu.Lock()
		defer f.execer.mu.Unlock()
		f.changes++
	})
	f.OnEvent(func(_ Target, _, reason, message string) {
		f.execer.mu.Lock()
		defer f.execer.mu.Unlock()
		f.events = append(f.events, reason+": "+message)
	})
	return f
}

func probeOf(word string, change func(*corev1.Probe)) *corev1.Probe {
	p := &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{word}}},
		PeriodSeconds: 10, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 3,
	}
	if change != nil {
		change(p)
	}
	return p
}

func targetOf(c corev1.Container) Target {
	c.Name = "c"
	return Target{PodUID: "uid", Namespace: "ns", PodName: "pod", Container: c, StartedAtUnixNano: time.Now().UnixNano()}
}

func (f *fixture) results(t *testing.T) Results {
	t.Helper()
	synctest.Wait()
	r, ok := f.Results("uid", "c", 0)
	if !ok {
		t.Fatal("not probed")
	}
	return r
}

// bubble runs a case on fake time, from a moment after the prober's start.
func bubble(t *testing.T, name string, run func(t *testing.T, f *fixture)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture()
			run(t, f)
			f.Stop("uid", "")
		})
	})
}

func TestProber(t *testing.T) {
	bubble(t, "no probes", func(t *testing.T, f *fixture) {
		f.Sync(targetOf(corev1.Container{}))
		if _, ok := f.Results("uid", "c", 0); ok {
			t.Error("a container without probes is probed")
		}
	})
	bubble(t, "readiness goes up and down by thresholds", func(t *testing.T, f *fixture) {
		f.execer.set("r", 1)
		f.Sync(targetOf(corev1.Container{ReadinessProbe: probeOf("r", func(p *corev1.Probe) { p.SuccessThreshold = 2 })}))
		if r := f.results(t); r.Ready || !r.Started || r.Message != "output of r" {
			t.Errorf("at first %+v", r)
		}
		f.execer.set("r", 0)
		time.Sleep(10 * time.Second)
		if f.results(t).Ready {
			t.Error("ready after one success of two")
		}
		time.Sleep(10 * time.Second)
		if !f.results(t).Ready {
			t.Error("not ready after two successes")
		}
		f.execer.set("r", 1)
		time.Sleep(20 * time.Second)
		if !f.results(t).Ready {
			t.Error("not ready after two failures of three")
		}
		time.Sleep(10 * time.Second)
		if f.results(t).Ready || f.changes != 2 {
			t.Errorf("ready after three failures, or %d changes", f.changes)
		}
		if len(f.events) != 4 || f.events[0] != "Unhealthy: Readiness probe failed: output of r" {
			t.Errorf("events %q", f.events)
		}
	})
	bubble(t, "liveness failure holds until the next attempt", func(t *testing.T, f *fixture) {
		f.execer.set("l", 1)
		grace := int64(7)
		c := corev1.Container{LivenessProbe: probeOf("l", func(p *corev1.Probe) {
			p.TerminationGracePeriodSeconds = &grace
			p.InitialDelaySeconds = 5
		})}
		f.Sync(targetOf(c))
		time.Sleep(24 * time.Second)
		if f.results(t).LivenessFailed {
			t.Error("failed too early")
		}
		time.Sleep(time.Minute)
		r := f.results(t)
		if !r.LivenessFailed || r.GracePeriodSeconds == nil || *r.GracePeriodSeconds != 7 || !r.Ready {
			t.Errorf("results %+v", r)
		}
		if got, want := f.execer.log(), "l 5, l 15, l 25"; got != want {
			t.Errorf("runs %s, want %s", got, want)
		}
		next := targetOf(c)
		next.Attempt = 1
		f.Sync(next)
		f.Sync(targetOf(c)) // late news
		if r, ok := f.Results("uid", "c", 1); !ok || r.LivenessFailed {
			t.Errorf("next attempt: %+v %v", r, ok)
		}
	})
	bubble(t, "startup gates the others", func(t *testing.T, f *fixture) {
		f.execer.set("s", 1)
		f.Sync(targetOf(corev1.Container{
			StartupProbe: probeOf("s", nil), LivenessProbe: probeOf("l", nil), ReadinessProbe: probeOf("r", nil),
		}))
		time.Sleep(15 * time.Second)
		if r := f.results(t); r.Started || r.Ready {
			t.Errorf("before %+v", r)
		}
		f.execer.set("s", 0)
		time.Sleep(5 * time.Second)
		if r := f.results(t); !r.Started || !r.Ready {
			t.Errorf("after %+v", r)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		got := f.execer.log()
		if strings.Count(got, "s ") != 3 || strings.Count(got, "l ") != 2 || strings.Count(got, "r ") != 2 {
			t.Errorf("runs %s", got)
		}
	})
	bubble(t, "startup failure", func(t *testing.T, f *fixture) {
		f.execer.set("s", 1)
		f.Sync(targetOf(corev1.Container{StartupProbe: probeOf("s", nil), ReadinessProbe: probeOf("r", nil)}))
		time.Sleep(time.Minute)
		if r := f.results(t); !r.StartupFailed || r.Started {
			t.Errorf("results %+v", r)
		}
	})
	bubble(t, "termination", func(t *testing.T, f *fixture) {
		f.execer.set("l", 1)
		f.Sync(targetOf(corev1.Container{LivenessProbe: probeOf("l", nil), ReadinessProbe: probeOf("r", nil)}))
		synctest.Wait()
		f.StopLivenessAndStartup("uid")
		f.execer.set("r", 1)
		time.Sleep(time.Minute)
		if r := f.results(t); r.LivenessFailed || r.Ready {
			t.Errorf("results %+v", r)
		}
	})
	bubble(t, "time-out and errors", func(t *testing.T, f *fixture) {
		f.execer.misbehave(true, nil)
		f.Sync(targetOf(corev1.Container{ReadinessProbe: probeOf("r", nil)}))
		time.Sleep(2 * time.Second)
		if r := f.results(t); !strings.Contains(r.Message, "timed out after 1s") {
			t.Errorf("results %+v", r)
		}
		f.execer.misbehave(false, errors.New("no such unit"))
		time.Sleep(time.Minute)
		synctest.Wait()
		want := "Unhealthy: Readiness probe errored and resulted in unknown state: no such unit"
		if last := f.events[len(f.events)-1]; last != want {
			t.Errorf("event %q, want %q", last, want)
		}
	})
}

// TestAgentRestart: a container that ran before keeps its results until a probe says otherwise.
func TestAgentRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := targetOf(corev1.Container{StartupProbe: probeOf("s", nil), ReadinessProbe: probeOf("r", nil)})
		old.WasStarted, old.WasReady = true, true
		time.Sleep(time.Second)
		f := newFixture()
		f.Sync(old)
		if r := f.results(t); !r.Ready || !r.Started {
			t.Errorf("results %+v", r)
		}
		time.Sleep(10 * time.Second)
		if got := f.execer.log(); strings.Contains(got, "s ") || strings.Count(got, "r ") != 1 || got == "r 0" {
			t.Errorf("runs %q", got)
		}
		f.Stop("uid", "c")
	})
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		f := newFixture(WithRegistry(registry))
		f.Sync(targetOf(corev1.Container{ReadinessProbe: probeOf("r", nil)}))
		time.Sleep(15 * time.Second)
		synctest.Wait()
		want := `
# HELP prober_probe_total Cumulative number of a liveness, readiness or startup probe for a container by result.
# TYPE prober_probe_total counter
prober_probe_total{container="c",namespace="ns",pod="pod",pod_uid="uid",probe_type="Readiness",result="successful"} 2
`
		if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "prober_probe_total"); err != nil {
			t.Error(err)
		}
		f.Stop("uid", "")
		if n, err := testutil.GatherAndCount(registry); err != nil || n != 0 {
			t.Errorf("%d metrics stay, %v", n, err)
		}
	})
}

func TestExpandStatic(t *testing.T) {
	env := []corev1.EnvVar{{Name: "A", Value: "x$(A)"}, {Name: "S", ValueFrom: &corev1.EnvVarSource{}}}
	tests := map[string]string{
		"$(A)": "x$(A)", "a$(A)b": "ax$(A)b", "$$(A)": "$(A)", "$(S)": "$(S)", "$(": "$(", "$": "$", "$A": "$A", "": "", "$$$": "$$",
	}
	for in, want := range tests {
		if got := expandStatic([]string{in}, env)[0]; got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}
