package provider

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/volumes"
)

// claimed gives a pod a volume that others lend.
func claimed(pod *corev1.Pod) {
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"},
	}}}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
}

// TestObjectStaysUntilVolumesAreGivenBack: whoever waits for the object's end may attach them
// elsewhere. A volume that cannot be given back costs an event, and not the pod.
func TestObjectStaysUntilVolumesAreGivenBack(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		var busy atomic.Bool
		busy.Store(true)
		w.giveBack = func() error {
			if busy.Load() {
				return errors.Join(&volumes.Error{Volume: "data", Named: "pv-1", Op: "UnmountVolume.TearDown", Err: errors.New("target is busy")})
			}
			return nil
		}
		a := w.boot("")
		w.create("a", claimed)
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.delete("a", 5)
		w.until("event", func() bool {
			return w.said(`Warning FailedUnmount UnmountVolume.TearDown failed for volume "pv-1" : target is busy`)
		})
		stays := func() {
			t.Helper()
			synctest.Wait()
			if _, ok := w.get("a"); !ok || len(w.left()) == 0 {
				t.Fatal("the object is gone, and its volume is not")
			}
		}
		time.Sleep(10 * time.Minute)
		stays()
		a.stop()
		w.boot("")
		time.Sleep(10 * time.Minute)
		stays()
		busy.Store(false)
		w.until("object gone", func() bool { _, ok := w.get("a"); return !ok })
		w.until("nothing left", func() bool { return len(w.left()) == 0 })
	})
}

// TestObjectOfOwnVolumesDoesNotWait: what this node alone has is not waited for.
func TestObjectOfOwnVolumesDoesNotWait(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		stuck := make(chan struct{})
		w.giveBack = func() error { <-stuck; return nil }
		w.boot("")
		w.create("a", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		})
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.delete("a", 5)
		w.until("object gone", func() bool { _, ok := w.get("a"); return !ok })
		if len(w.left()) == 0 {
			t.Error("the test is void: the volumes are gone, too")
		}
		close(stuck)
		w.until("nothing left", func() bool { return len(w.left()) == 0 })
	})
}

// TestMissingVolumesAreTold: a pod that waits for a volume says for which, after a kubelet's
// time, also while nothing has failed.
func TestMissingVolumesAreTold(t *testing.T) {
	const late = `Warning FailedMount Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[`
	for name, c := range map[string]struct {
		lend func(context.Context) error
		want string
	}{
		"attaching": {
			func(context.Context) error {
				return errors.Join(&volumes.Error{Volume: "data", Op: "AttachVolume.Attach", Quiet: true, Err: errors.New("not yet")})
			}, late + `data], failed to process volumes=[]: context deadline exceeded`,
		},
		"mounting": {
			func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
			late + `], failed to process volumes=[]: context deadline exceeded`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				w.t = t
				w.lend = c.lend
				w.boot("")
				w.create("a", claimed)
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				if w.said("FailedMount") {
					t.Fatalf("events: %v", w.events)
				}
				time.Sleep(4 * time.Second)
				synctest.Wait()
				if !w.said(c.want) {
					t.Errorf("events: %v", w.events)
				}
			})
		})
	}
}

// TestPodOnAFullNodeIsRejected: what cannot be attached here ever is not waited for.
func TestPodOnAFullNodeIsRejected(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.lend = func(context.Context) error {
			return errors.Join(&volumes.Error{Volume: "data", Named: "pv-1", Op: "AttachVolume.Attach", Full: true, Err: errors.New("too many")})
		}
		w.boot("")
		w.create("a", claimed)
		w.until("Failed", w.podIs("a", corev1.PodFailed))
		const why = "Node has reached its volume attachment limit, rejecting pod. unmounted volumes=[data], unattached volumes=[data], failed to process volumes=[]: too many"
		if pod, _ := w.get("a"); pod.Status.Reason != "VolumeAttachmentLimitExceeded" || pod.Status.Message != "Pod was rejected: "+why {
			t.Errorf("%s: %q", pod.Status.Reason, pod.Status.Message)
		}
		for _, event := range []string{"Warning VolumeAttachmentLimitExceeded " + why, `Warning FailedAttachVolume AttachVolume.Attach failed for volume "pv-1" : too many`} {
			if !w.said(event) {
				t.Errorf("no event %q: %v", event, w.events)
			}
		}
		w.delete("a", 0)
		w.until("nothing left", func() bool { return len(w.left()) == 0 })
	})
}

// TestLateUserOfAVolume: an ephemeral container may be the first that uses a volume.
func TestLateUserOfAVolume(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		var prepared atomic.Int32
		w.lend = func(context.Context) error { prepared.Add(1); return nil }
		w.boot("")
		w.create("a", func(p *corev1.Pod) {
			claimed(p)
			p.Spec.Containers[0].VolumeMounts = nil
		})
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.debug("a", "debugger", "", func(c *corev1.EphemeralContainer) {
			c.VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
		})
		w.until("the debugger runs", func() bool { return w.ephemeral("a").State.Running != nil })
		if n := prepared.Load(); n != 2 {
			t.Errorf("volumes were prepared %d times", n)
		}
	})
}
