package provider

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// forcedAway takes a pod's object away behind the agent's back.
func (w *world) forcedAway(name string) {
	w.t.Helper()
	if err := w.client.Tracker().Delete(schema.GroupVersionResource{Version: "v1", Resource: "pods"}, "ns", name); err != nil {
		w.t.Fatal(err)
	}
}

func TestPodDeletedWhileTheAgentWasDownIsEnded(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		w.create("a", nil)
		w.create("b", nil)
		w.until("a runs", w.podIs("a", corev1.PodRunning))
		w.until("b runs", w.podIs("b", corev1.PodRunning))
		w.until("cluster known", func() bool { time.Sleep(time.Minute); return true })
		a.stop()
		w.forcedAway("a")
		w.boot("")
		w.until("a is ended", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			_, left := w.networks["uid-a"]
			return !left && len(w.units) == 1
		})
		if pod, _ := w.get("b"); pod.Status.ContainerStatuses[0].RestartCount != 0 || !w.runs("app") {
			t.Error("the other pod was touched")
		}
	})
}

// TestACollectionThatFailsIsRepeatedSoon: what is left over does not stay for a minute.
func TestACollectionThatFailsIsRepeatedSoon(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		w.create("a", nil)
		w.until("a runs", w.podIs("a", corev1.PodRunning))
		w.until("cluster known", func() bool { time.Sleep(time.Minute); return true })
		a.stop()
		w.forcedAway("a")
		w.hidden = 3
		w.boot("")
		begun := time.Now()
		w.until("a is ended", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.units) == 0 })
		if took := time.Since(begun); took < 7*time.Second || took > collectEvery {
			t.Errorf("ended after %s", took)
		}
	})
}

func TestForeignOrEmptyServerEndsNothing(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		w.create("a", nil)
		w.until("a runs", w.podIs("a", corev1.PodRunning))
		w.until("cluster known", func() bool { time.Sleep(2 * time.Minute); return true })
		a.stop()
		w.forcedAway("a")
		services := w.client.CoreV1().Services("default")
		if err := services.Delete(context.Background(), "kubernetes", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		other := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes", UID: "cluster-2"}}
		if _, err := services.Create(context.Background(), other, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.boot("")
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if !w.runs("app") {
			t.Error("a server that never had the pod ended it")
		}
	})
}

func TestSameNameNewUID(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.deaf["app"] = true
		w.boot("")
		w.create("a", nil)
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.delete("a", 0) // by force: the object is gone, the process is not
		w.create("a", func(p *corev1.Pod) { p.UID = "uid-a2" })
		w.until("the new one runs", w.podIs("a", corev1.PodRunning))
		w.until("the old one is gone", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.units) == 1 && len(w.networks) == 1 })
		if pod, _ := w.get("a"); pod.UID != "uid-a2" || pod.Status.Phase != corev1.PodRunning {
			t.Errorf("pod %s is %s", pod.UID, pod.Status.Phase)
		}
	})
}

func TestRebootRaisesRestartCounts(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		w.create("always", nil)
		w.create("never", func(p *corev1.Pod) {
			p.Spec.RestartPolicy = corev1.RestartPolicyNever
			p.Spec.Containers[0].Name = "once"
		})
		w.until("both run", func() bool { return w.podIs("always", corev1.PodRunning)() && w.podIs("never", corev1.PodRunning)() })
		a.stop()
		w.reboot()
		w.boot("")
		w.until("restarted", func() bool {
			pod, _ := w.get("always")
			cs := pod.Status.ContainerStatuses[0]
			return cs.RestartCount == 1 && cs.State.Running != nil && cs.LastTerminationState.Terminated != nil
		})
		w.until("never again", w.podIs("never", corev1.PodFailed))
		if pod, _ := w.get("never"); pod.Status.ContainerStatuses[0].State.Terminated.ExitCode != 255 {
			t.Errorf("status of the lost container: %+v", pod.Status.ContainerStatuses[0].State)
		}
	})
}
