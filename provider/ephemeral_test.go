package provider

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// debug adds an ephemeral container to a pod, as `kubectl debug` does.
func (w *world) debug(pod, name, target string, change func(*corev1.EphemeralContainer)) {
	w.t.Helper()
	synctest.Wait()
	now, _ := w.get(pod)
	e := corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: name, Image: "img"}, TargetContainerName: target}
	if change != nil {
		change(&e)
	}
	now.Spec.EphemeralContainers = append(now.Spec.EphemeralContainers, e)
	now.Generation++
	if _, err := w.client.CoreV1().Pods("ns").Update(context.Background(), now, metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// ephemeral is the status of the first ephemeral container.
func (w *world) ephemeral(pod string) corev1.ContainerStatus {
	now, ok := w.get(pod)
	if !ok || len(now.Status.EphemeralContainerStatuses) == 0 {
		return corev1.ContainerStatus{}
	}
	return now.Status.EphemeralContainerStatuses[0]
}

func (w *world) launched(container string) launchspec.Spec {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var spec launchspec.Spec
	for _, u := range w.units {
		if u.Identity.Container != container {
			continue
		}
		data, err := os.ReadFile(u.LaunchSpec)
		if err != nil {
			w.t.Fatal(err)
		}
		if err := json.Unmarshal(data, &spec); err != nil {
			w.t.Fatal(err)
		}
	}
	return spec
}

func TestEphemeralContainerRunsOnce(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		first := w.boot("")
		w.create("a", nil)
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.debug("a", "debugger", "", nil)
		w.until("the debugger runs", func() bool { return w.ephemeral("a").State.Running != nil })
		first.stop()
		again := w.boot("")
		synctest.Wait()
		w.exit(again, "debugger", 3)
		w.until("the debugger has ended", func() bool { return w.ephemeral("a").State.Terminated != nil })
		w.exit(again, "app", 1)
		w.until("the app runs again", func() bool { pod, _ := w.get("a"); return pod.Status.ContainerStatuses[0].RestartCount == 1 })
		time.Sleep(time.Hour)
		synctest.Wait()
		status := w.ephemeral("a")
		if status.State.Terminated == nil || status.State.Terminated.ExitCode != 3 || status.RestartCount != 0 || status.Ready || status.Started != nil {
			t.Errorf("status %+v", status)
		}
		if want := []string{"app/0", "debugger/0", "app/1"}; !slices.Equal(w.starts, want) {
			t.Errorf("starts %v, want %v", w.starts, want)
		}
		if pod, _ := w.get("a"); pod.Status.Phase != corev1.PodRunning {
			t.Errorf("phase %s", pod.Status.Phase)
		}
		w.delete("a", 5)
		w.until("nothing left", func() bool { return len(w.left()) == 0 })
	})
}

func TestEphemeralContainerDoesNotOutliveItsPodNorAReboot(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		w.create("once", func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyNever })
		w.until("Running", w.podIs("once", corev1.PodRunning))
		w.debug("once", "debugger", "", nil)
		w.until("the debugger runs", func() bool { return w.ephemeral("once").State.Running != nil })
		w.exit(a, "app", 0)
		w.until("Succeeded", w.podIs("once", corev1.PodSucceeded))
		if w.runs("debugger") {
			t.Error("the debugger lives on in a pod that has ended")
		}
		w.create("b", nil)
		w.until("Running", w.podIs("b", corev1.PodRunning))
		w.debug("b", "debugger", "", nil)
		w.until("the debugger runs", func() bool { return w.ephemeral("b").State.Running != nil })
		a.stop()
		w.reboot()
		w.boot("")
		w.until("the app runs again", func() bool { pod, _ := w.get("b"); return pod.Status.ContainerStatuses[0].RestartCount == 1 })
		if status := w.ephemeral("b"); status.State.Terminated == nil || w.runs("debugger") {
			t.Errorf("after the reboot the debugger is %+v", status.State)
		}
	})
}

func TestEphemeralContainerJoinsItsTarget(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		crash := true
		w.behave = func(u *fakeUnit) {
			if u.Identity.Container == "app" && crash {
				w.end(u, 1, 0)
			}
		}
		w.boot("")
		w.create("a", nil)
		w.until("the app crashes", func() bool {
			pod, _ := w.get("a")
			return len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].RestartCount == 1
		})
		w.debug("a", "debugger", "app", nil)
		w.until("the debugger waits for the app", func() bool {
			waiting := w.ephemeral("a").State.Waiting
			return waiting != nil && waiting.Reason == "CreateContainerError" && strings.Contains(waiting.Message, "app is not running")
		})
		w.mu.Lock()
		crash = false
		w.mu.Unlock()
		w.until("the debugger runs", func() bool { return w.ephemeral("a").State.Running != nil })
		if of := w.launched("debugger").Namespaces.PIDOf; of == nil || of.PID != 1 || !strings.HasPrefix(of.Unit, "vkm-uid-a-app-") {
			t.Errorf("joined %+v", of)
		}
	})
}

// TestRefusedEphemeralContainerHoldsNobodyElseBack: it cannot be removed from its pod again.
func TestRefusedEphemeralContainerHoldsNobodyElseBack(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		w.create("a", nil)
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.debug("a", "debugger", "", func(e *corev1.EphemeralContainer) {
			e.SecurityContext = &corev1.SecurityContext{AppArmorProfile: &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}}
		})
		w.until("the debugger is refused", func() bool {
			waiting := w.ephemeral("a").State.Waiting
			return waiting != nil && waiting.Reason == "UnsupportedPodSpec" && strings.Contains(waiting.Message, "spec.ephemeralContainers{debugger}.securityContext.appArmorProfile")
		})
		w.exit(a, "app", 1)
		w.until("the app runs again", func() bool {
			pod, _ := w.get("a")
			return pod.Status.ContainerStatuses[0].RestartCount == 1 && pod.Status.ContainerStatuses[0].State.Running != nil
		})
	})
}
