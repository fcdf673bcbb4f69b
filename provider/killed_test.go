package provider

import (
	"encoding/json"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/vk-metal/vk-metal/probes"
)

// ends are the patches that tell the API server of an end of app: it would never let a container come
// back from one that its restart policy leaves it in.
func (w *world) ends() func() []string {
	var told []string
	w.client.PrependReactor("patch", "pods", func(action clienttesting.Action) (bool, kruntime.Object, error) {
		var patch corev1.Pod
		body := action.(clienttesting.PatchAction).GetPatch()
		_ = json.Unmarshal(body, &patch)
		for _, cs := range patch.Status.ContainerStatuses {
			if cs.State.Terminated != nil {
				told = append(told, string(body))
			}
		}
		return false, nil, nil
	})
	return func() []string { synctest.Wait(); return slices.Clone(told) }
}

// TestWhatAProbeKillsIsStartedAgain: also a program that ends in good order when it is asked to.
// A Job's pod that hung would be taken for one that has done its work.
func TestWhatAProbeKillsIsStartedAgain(t *testing.T) {
	for name, tc := range map[string]struct {
		policy corev1.RestartPolicy
		change func(*world)
		starts []string
		phase  corev1.PodPhase
	}{
		"liveness": {corev1.RestartPolicyOnFailure, func(w *world) {
			w.results["app/0"] = probes.Results{Started: true, LivenessFailed: true}
		}, []string{"app/0", "app/1"}, corev1.PodRunning},
		"startup": {corev1.RestartPolicyOnFailure, func(w *world) {
			w.results["app/0"] = probes.Results{StartupFailed: true}
		}, []string{"app/0", "app/1"}, corev1.PodRunning},
		"never": {corev1.RestartPolicyNever, func(w *world) {
			w.results["app/0"] = probes.Results{Started: true, LivenessFailed: true}
		}, []string{"app/0"}, corev1.PodSucceeded},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				w.t = t
				told := w.ends()
				w.deaf["app"] = true // the signal is answered below
				a := w.boot("")
				w.create("a", func(p *corev1.Pod) { p.Spec.RestartPolicy = tc.policy })
				w.until("Running", w.podIs("a", corev1.PodRunning))
				w.mu.Lock()
				tc.change(w)
				w.slow = time.Second
				w.mu.Unlock()
				a.onProbe("uid-a")
				w.until("it is asked to stop", func() bool { return len(w.sent()) > 0 })
				w.exit(a, "app", 0)
				time.Sleep(time.Minute)
				if got := w.started(); !slices.Equal(got, tc.starts) {
					t.Errorf("starts %q, want %q", got, tc.starts)
				}
				if pod, _ := w.get("a"); pod.Status.Phase != tc.phase {
					t.Errorf("phase %s, want %s", pod.Status.Phase, tc.phase)
				}
				if got := told(); tc.phase == corev1.PodRunning && len(got) > 0 {
					t.Errorf("the API server was told of ends %v", got)
				}
			})
		})
	}
}
