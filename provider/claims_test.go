package provider

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
)

// fakeClaims fails as it is told to, and remembers for whom claims are held.
type fakeClaims struct {
	mu              sync.Mutex
	prepare, giveUp error
	held            map[string]string
}

func (f *fakeClaims) Prepare(_ context.Context, pod *corev1.Pod) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.prepare == nil {
		f.held[string(pod.UID)] = pod.Namespace
	}
	return f.prepare
}

func (f *fakeClaims) Devices(*corev1.Pod, *corev1.Container) ([]string, error) { return nil, nil }

func (f *fakeClaims) Release(_ context.Context, uid string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.giveUp == nil {
		delete(f.held, uid)
	}
	return f.giveUp
}

func (f *fakeClaims) Pods() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]string{}
	for uid, namespace := range f.held {
		out[uid] = namespace
	}
	return out
}

func (f *fakeClaims) fail(prepare, giveUp error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.prepare, f.giveUp = prepare, giveUp
}

func withClaim(p *corev1.Pod) {
	name := "gpu"
	p.Spec.RestartPolicy = corev1.RestartPolicyNever
	p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "gpu", ResourceClaimName: &name}}
}

// TestClaimsComeFirstAndGoLast: nothing starts before the claims are ready, and nobody is told
// of the pod's end before they are given back, though the agent is another by then.
func TestClaimsComeFirstAndGoLast(t *testing.T) {
	w := newWorld(t)
	claims := &fakeClaims{held: map[string]string{}}
	w.facts = func(d *Deps) { d.Claims = claims }
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		claims.fail(errors.New("DRA driver x is not registered"), errors.New("DRA driver x is not registered"))
		a := w.boot("")
		w.create("a", withClaim)
		w.until("it is told", func() bool {
			return w.said("Warning FailedPrepareDynamicResources Failed to prepare dynamic resources: DRA driver x is not registered")
		})
		if got := w.started(); len(got) > 0 {
			t.Errorf("starts %v", got)
		}
		claims.fail(nil, errors.New("DRA driver x is not registered"))
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.exit(a, "app", 0)
		w.until("that they stay is told", func() bool { return w.said("Warning FailedUnprepareDynamicResources") })
		if pod, _ := w.get("a"); pod.Status.Phase != corev1.PodRunning {
			t.Errorf("the phase is %s although others would take the devices", pod.Status.Phase)
		}
		a.stop()
		w.boot("")
		claims.fail(nil, nil)
		w.until("Succeeded", w.podIs("a", corev1.PodSucceeded))
		if held := claims.Pods(); len(held) > 0 {
			t.Errorf("held for %v", held)
		}
	})
}

// TestClaimsOfForgottenPods: a power cut took all but the list of claims.
func TestClaimsOfForgottenPods(t *testing.T) {
	w := newWorld(t)
	claims := &fakeClaims{held: map[string]string{"uid-gone": "ns"}}
	w.facts = func(d *Deps) { d.Claims = claims }
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.boot("")
		w.until("given back", func() bool { return len(claims.Pods()) == 0 })
	})
}
