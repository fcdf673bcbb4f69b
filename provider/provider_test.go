package provider

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
)

func TestPodRunsAndIsDeleted(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.boot("")
		w.create("a", nil)
		w.until("Running", w.podIs("a", corev1.PodRunning))
		pod, _ := w.get("a")
		if pod.Status.PodIP != "10.0.0.1" || pod.Status.HostIP != "192.0.2.1" {
			t.Errorf("addresses %q %q", pod.Status.PodIP, pod.Status.HostIP)
		}
		if cs := pod.Status.ContainerStatuses[0]; !cs.Ready || cs.State.Running == nil || cs.ImageID != "img@sha256:1" {
			t.Errorf("container status %+v", cs)
		}
		w.delete("a", 30)
		begun := time.Now()
		w.until("object gone", func() bool { _, ok := w.get("a"); return !ok })
		if took := time.Since(begun); took > time.Second {
			t.Errorf("deleted after %v although the process ended at once", took)
		}
		w.until("nothing left", func() bool { return len(w.left()) == 0 })
	})
}

// TestAStartIsToldAtOnce: between what a pod needs and its first report of a running
// container there is the start alone, no other report and no question to systemd. What is
// made ready in less than a second is not reported by itself at all.
func TestAStartIsToldAtOnce(t *testing.T) {
	for slow, reports := range map[time.Duration][]string{
		0: {`"phase":"Running"`}, firstReport * 7 / 10: {`"phase":"Running"`}, 3 * firstReport: {"ContainerCreating", `"phase":"Running"`},
	} {
		t.Run(slow.String(), func(t *testing.T) { startIsTold(t, slow, reports) })
	}
}

// startIsTold starts a pod whose network, and then an object, take some time each.
func startIsTold(t *testing.T, slow time.Duration, reports []string) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.silent, w.slow = true, slow
		w.objects["cm/ns/config"] = &corev1.ConfigMap{Data: map[string]string{"KEY": "value"}}
		var told []string
		w.client.PrependReactor("patch", "pods", func(action clienttesting.Action) (bool, kruntime.Object, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			told = append(told, string(action.(clienttesting.PatchAction).GetPatch()))
			return false, nil, nil
		})
		w.boot("")
		w.create("a", func(p *corev1.Pod) {
			p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{
				LocalObjectReference: corev1.LocalObjectReference{Name: "config"},
			}}}
		})
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.gets != 0 || !slices.EqualFunc(told, reports, strings.Contains) {
			t.Errorf("systemd was asked %d times, the API was told %q", w.gets, told)
		}
	})
}

func TestDeafProcessIsKilledAfterGrace(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.deaf["app"] = true
		w.boot("")
		w.create("a", nil)
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.delete("a", 12)
		begun := time.Now()
		w.until("object gone", func() bool { _, ok := w.get("a"); return !ok })
		if took := time.Since(begun); took < 12*time.Second || took > 13*time.Second {
			t.Errorf("deleted after %v, grace is 12 s", took)
		}
	})
}

func TestCrashLoopBacksOffAsAKubelet(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		var at []time.Duration
		begun := time.Now()
		w.behave = func(u *fakeUnit) {
			at = append(at, time.Since(begun).Truncate(time.Second))
			w.end(u, 1, 0)
		}
		w.boot("")
		w.create("a", nil)
		w.until("six starts", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(at) >= 7 })
		want := []int{0, 0, 10, 30, 70, 150, 310}
		for i := range want {
			if diff := at[i] - time.Duration(want[i])*time.Second; diff < 0 || diff > 2*time.Second {
				t.Fatalf("started at %v, want %v (seconds)", at, want)
			}
		}
		pod, _ := w.get("a")
		cs := pod.Status.ContainerStatuses[0]
		if cs.State.Waiting == nil || cs.State.Waiting.Reason != "CrashLoopBackOff" || cs.RestartCount != 6 || cs.LastTerminationState.Terminated.ExitCode != 1 {
			t.Errorf("status %+v", cs)
		}
		if pod.Status.Phase != corev1.PodRunning {
			t.Errorf("phase %s", pod.Status.Phase)
		}
	})
}

func TestPodEndsByItself(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		w.create("a", func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyNever })
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.exit(a, "app", 0)
		w.until("Succeeded", w.podIs("a", corev1.PodSucceeded))
		w.create("b", func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyOnFailure })
		w.until("Running", w.podIs("b", corev1.PodRunning))
		w.exit(a, "app", 3)
		w.until("restarted", func() bool { pod, _ := w.get("b"); return pod.Status.ContainerStatuses[0].RestartCount == 1 })
		w.exit(a, "app", 0)
		w.until("Succeeded", w.podIs("b", corev1.PodSucceeded))
	})
}

func TestInitContainersAndSidecarsKeepTheirOrder(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		always := corev1.ContainerRestartPolicyAlways
		w.create("a", func(p *corev1.Pod) {
			p.Spec.RestartPolicy = corev1.RestartPolicyNever
			p.Spec.InitContainers = []corev1.Container{
				{Name: "one", Image: "img"}, {Name: "side", Image: "img", RestartPolicy: &always}, {Name: "two", Image: "img"},
			}
		})
		started := func(want ...string) func() bool {
			return func() bool { w.mu.Lock(); defer w.mu.Unlock(); return slices.Equal(w.starts, want) }
		}
		w.until("first", started("one/0"))
		pod, _ := w.get("a")
		if pod.Status.Phase != corev1.PodPending || pod.Status.ContainerStatuses[0].State.Waiting.Reason != "PodInitializing" {
			t.Errorf("while initializing: %s %+v", pod.Status.Phase, pod.Status.ContainerStatuses[0].State)
		}
		w.exit(a, "one", 0)
		w.until("sidecar and second", started("one/0", "side/0", "two/0"))
		w.exit(a, "two", 0)
		w.until("main", started("one/0", "side/0", "two/0", "app/0"))
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.exit(a, "app", 0)
		w.until("Succeeded", w.podIs("a", corev1.PodSucceeded))
	})
}

func TestBadSubPathHealsWhenItsAnnotationChanges(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.boot("")
		w.create("a", func(p *corev1.Pod) {
			p.Annotations = map[string]string{"path": "/absolute"}
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
			c := &p.Spec.Containers[0]
			c.Env = []corev1.EnvVar{{Name: "P", ValueFrom: &corev1.EnvVarSource{
				FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.annotations['path']"},
			}}}
			c.VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v", SubPathExpr: "$(P)"}}
		})
		message := func(part string) func() bool {
			return func() bool {
				pod, _ := w.get("a")
				cs := pod.Status.ContainerStatuses
				return len(cs) == 1 && cs[0].State.Waiting != nil && strings.Contains(cs[0].State.Waiting.Message, part)
			}
		}
		w.until("the bad path is refused", message("must not be absolute"))
		pod, _ := w.get("a")
		pod.Annotations["path"] = "fine"
		if _, err := w.client.CoreV1().Pods("ns").Update(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		// The world's volumes are not there, so that the good path fails later.
		w.until("the new path is used", message(`"fine"`))
	})
}

func TestChangeDuringAnUpdateOfVolumesIsSeen(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		var value, rendered atomic.Int64
		var quiet atomic.Bool
		fails := 1
		w.render = func() error {
			if quiet.Load() {
				t.Error("rendered again without a change")
			}
			read := value.Load()
			time.Sleep(time.Second)
			if rendered.Store(read); read == 2 && fails > 0 {
				fails--
				return errors.New("the API server is away")
			}
			return nil
		}
		a := w.boot("")
		w.create("a", nil)
		w.until("Running", w.podIs("a", corev1.PodRunning))
		for value.Load() < 2 { // the second one while the first is rendered
			value.Add(1)
			a.onObject("uid-a")
			time.Sleep(10 * time.Millisecond)
		}
		w.until("the last value is rendered, at the second try", func() bool { return rendered.Load() == 2 && fails == 0 })
		time.Sleep(time.Minute)
		quiet.Store(true)
		time.Sleep(time.Hour)
	})
}

func TestMissingConfigMapHeals(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		w.create("a", func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "X", ValueFrom: &corev1.EnvVarSource{
				ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}, Key: "k"},
			}}}
		})
		w.until("CreateContainerConfigError", func() bool {
			pod, _ := w.get("a")
			cs := pod.Status.ContainerStatuses
			return len(cs) == 1 && cs[0].State.Waiting != nil && cs[0].State.Waiting.Reason == "CreateContainerConfigError"
		})
		w.mu.Lock()
		w.objects["cm/ns/cm"] = &corev1.ConfigMap{Data: map[string]string{"k": "v"}}
		w.mu.Unlock()
		a.onObject("uid-a")
		w.until("Running", w.podIs("a", corev1.PodRunning))
	})
}

// TestStatusIsSentInTime: an API server that refuses is asked now and then, however often the
// pod's state changes, and has the present state soon after it is back.
func TestStatusIsSentInTime(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		var away atomic.Bool
		var asked atomic.Int32
		w.client.PrependReactor("patch", "pods", func(clienttesting.Action) (bool, kruntime.Object, error) {
			if !away.Load() {
				return false, nil, nil
			}
			asked.Add(1)
			return true, nil, apierrors.NewForbidden(corev1.Resource("pods"), "a", errors.New("not now"))
		})
		a := w.boot("")
		w.create("a", nil)
		w.until("Running", w.podIs("a", corev1.PodRunning))
		away.Store(true)
		w.exit(a, "app", 1)
		time.Sleep(5 * time.Minute)
		if n := asked.Load(); n < 50 || n > 200 {
			t.Errorf("asked %d times in 5 minutes", n)
		}
		away.Store(false)
		begun := time.Now()
		w.until("restart told", func() bool {
			pod, _ := w.get("a")
			return pod.Status.ContainerStatuses[0].RestartCount == 1
		})
		if took := time.Since(begun); took > maxAPIRetry {
			t.Errorf("told %s after the API server was back", took)
		}
	})
}
