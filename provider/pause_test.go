package provider

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

func sharePID(p *corev1.Pod) {
	share := true
	p.Spec.ShareProcessNamespace = &share
}

func TestContainersShareAProcessNamespace(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		w.create("a", func(p *corev1.Pod) {
			sharePID(p)
			p.Spec.InitContainers = []corev1.Container{{Name: "init", Image: "img"}}
		})
		joins := func(name string) {
			w.until(name+" runs", func() bool { return w.runs(name) })
			if of := w.launched(name).Namespaces.PIDOf; of == nil || of.Unit != "vkm-uid-a-.pause-0.service" || of.PID != 1 {
				t.Errorf("%s joins %+v", name, of)
			}
		}
		joins("init")
		w.exit(a, "init", 0)
		joins("app")
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.exit(a, "app", 1)
		w.until("the app runs again", func() bool { pod, _ := w.get("a"); return pod.Status.ContainerStatuses[0].RestartCount == 1 })
		joins("app")
		if want := []string{".pause/0", "init/0", "app/0", "app/1"}; !slices.Equal(w.starts, want) {
			t.Errorf("starts %v, want %v", w.starts, want)
		}
		w.deaf["app"] = true
		w.delete("a", 5)
		w.until("the app is killed", func() bool { return !w.runs("app") })
		w.until("nothing left", func() bool { return len(w.left()) == 0 })
	})
}

// TestPauseOutlivesTheContainers: with it everything in its namespace would be killed.
func TestPauseOutlivesTheContainers(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.deaf["app"] = true
		w.boot("")
		w.create("a", sharePID)
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.delete("a", 20)
		w.until("the pod ends", func() bool {
			if w.runs("app") && !w.runs(podplan.PauseName) {
				t.Fatal("the namespace went before the container's grace period was over")
			}
			_, there := w.get("a")
			return !there
		})
	})
}

func TestDeathOfThePauseProcessStartsThePodAnew(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		always := corev1.ContainerRestartPolicyAlways
		w.create("a", func(p *corev1.Pod) {
			sharePID(p)
			p.Spec.InitContainers = []corev1.Container{{Name: "init", Image: "img"}, {Name: "side", Image: "img", RestartPolicy: &always}}
		})
		w.until("init runs", func() bool { return w.runs("init") })
		w.exit(a, "init", 0)
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.exit(a, podplan.PauseName, 137)
		w.until("init runs again", func() bool { return w.runs("init") })
		if w.runs("app") {
			t.Error("the app runs before its init container has")
		}
		w.exit(a, "init", 0)
		w.until("the app runs again", func() bool {
			pod, _ := w.get("a")
			cs := pod.Status.ContainerStatuses[0]
			return cs.RestartCount == 1 && cs.Ready && cs.LastTerminationState.Terminated.ExitCode == 137
		})
		if want := []string{".pause/0", "init/0", "side/0", "app/0", ".pause/1", "init/1", "side/1", "app/1"}; !slices.Equal(w.starts, want) {
			t.Errorf("starts %v, want %v", w.starts, want)
		}
		if !slices.ContainsFunc(w.events, func(e string) bool { return strings.Contains(e, "SandboxChanged") }) {
			t.Error("nothing tells that the sandbox changed")
		}
	})
}

func TestDeathOfThePauseProcessEndsAPodThatMustNotRestart(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		w.create("a", func(p *corev1.Pod) { sharePID(p); p.Spec.RestartPolicy = corev1.RestartPolicyNever })
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.exit(a, podplan.PauseName, 137)
		w.until("Failed", w.podIs("a", corev1.PodFailed))
		if want := []string{".pause/0", "app/0"}; !slices.Equal(w.starts, want) {
			t.Errorf("starts %v, want %v", w.starts, want)
		}
	})
}

func TestSharedNamespaceAfterAReboot(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		w.create("a", sharePID)
		w.until("Running", w.podIs("a", corev1.PodRunning))
		a.stop()
		w.reboot()
		a = w.boot("")
		w.until("the app runs again", func() bool { pod, _ := w.get("a"); return pod.Status.ContainerStatuses[0].RestartCount == 1 })
		w.exit(a, "app", 0)
		w.until("and again", func() bool { pod, _ := w.get("a"); return pod.Status.ContainerStatuses[0].RestartCount == 2 })
		if want := []string{".pause/0", "app/0", ".pause/0", "app/1", "app/2"}; !slices.Equal(w.starts, want) {
			t.Errorf("starts %v, want %v", w.starts, want)
		}
	})
}
