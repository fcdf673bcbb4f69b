package provider

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestImagesInUse follows what may not be removed: the images of what runs, of what waits
// for its restart, and of what could not be started yet.
func TestImagesInUse(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.behave = func(u *fakeUnit) {
			if u.Identity.PodName == "crashes" {
				w.end(u, 1, 0)
			}
		}
		a := w.boot("")
		<-a.provider.Ready()
		synctest.Wait() // the fake API server loses what is made between list and watch
		image := func(name string) func(*corev1.Pod) {
			return func(pod *corev1.Pod) { pod.Spec.Containers[0].Image = name }
		}
		w.create("runs", image("run"))
		w.create("crashes", image("crash"))
		w.create("waits", func(pod *corev1.Pod) {
			image("wait")(pod)
			pod.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "missing"}}}}
		})
		w.create("ends", func(pod *corev1.Pod) {
			image("end")(pod)
			pod.Spec.RestartPolicy = corev1.RestartPolicyNever
		})
		w.until("Running", w.podIs("runs", corev1.PodRunning))
		w.until("Running", w.podIs("ends", corev1.PodRunning))
		w.mu.Lock()
		for _, u := range w.units {
			if u.Identity.PodName == "ends" {
				w.end(u, 0, 0)
				a.notify(u.Name)
			}
		}
		w.mu.Unlock()
		w.until("Succeeded", w.podIs("ends", corev1.PodSucceeded))
		time.Sleep(time.Minute)
		used, err := a.provider.ImagesInUse(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]bool{"run": true, "crash": true, "wait": true, "end": false} {
			if slices.Contains(used, name+"@sha256:1") != want {
				t.Errorf("image %s in use: %t, want %t (%v)", name, !want, want, used)
			}
		}
	})
}

// TestImageRemovedBeforeTheStart is fetched again, and the start comes after.
func TestImageRemovedBeforeTheStart(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.pruned = 2
		w.boot("")
		w.create("a", nil)
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.pulls != 3 || w.held != 0 || len(w.starts) != 1 {
			t.Errorf("%d pulls, %d starts held, starts %v", w.pulls, w.held, w.starts)
		}
	})
}
