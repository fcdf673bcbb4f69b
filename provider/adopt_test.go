package provider

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/vk-metal/vk-metal/probes"
)

// lastProbed is what the newest agent says of a container to those who probe it.
func (w *world) lastProbed() string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.probed[len(w.probed)-1]
	return fmt.Sprintf("%s/%d started=%t ready=%t", t.Container.Name, t.Attempt, t.WasStarted, t.WasReady)
}

// TestStartedContainersAreNotProbedAnew: a startup probe may be one that succeeds once only, and
// must not end a container that has run since long before this agent.
func TestStartedContainersAreNotProbedAnew(t *testing.T) {
	for name, tc := range map[string]struct {
		results probes.Results
		want    string
	}{
		"started and ready": {probes.Results{Started: true, Ready: true}, "app/0 started=true ready=true"},
		"started":           {probes.Results{Started: true}, "app/0 started=true ready=false"},
		"not yet":           {probes.Results{}, "app/0 started=false ready=false"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				w.t = t
				w.results["app/0"] = tc.results
				a := w.boot("")
				w.create("a", nil)
				w.until("told", func() bool {
					pod, _ := w.get("a")
					cs := pod.Status.ContainerStatuses
					return len(cs) == 1 && cs[0].State.Running != nil && *cs[0].Started == tc.results.Started && cs[0].Ready == tc.results.Ready
				})
				a.stop()
				before := len(w.probed)
				w.boot("")
				w.until("it is probed again", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.probed) > before })
				if got := w.lastProbed(); got != tc.want {
					t.Errorf("got %s, want %s", got, tc.want)
				}
			})
		})
	}
}

// TestWhatTheAttemptBeforeWasSaysNothing: the API may know of the one before only.
func TestWhatTheAttemptBeforeWasSaysNothing(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		w.create("a", nil)
		w.until("Running", func() bool {
			pod, _ := w.get("a")
			return pod.Status.Phase == corev1.PodRunning && pod.Status.ContainerStatuses[0].Ready
		})
		w.client.PrependReactor("patch", "pods", func(clienttesting.Action) (bool, kruntime.Object, error) {
			return true, nil, errors.New("the API server is away")
		})
		w.exit(a, "app", 1)
		w.until("it is started again", func() bool { return slices.Contains(w.started(), "app/1") })
		synctest.Wait()
		a.stop()
		before := len(w.probed)
		w.boot("")
		w.until("it is probed again", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.probed) > before })
		if got := w.lastProbed(); got != "app/1 started=false ready=false" {
			t.Errorf("got %s", got)
		}
	})
}
