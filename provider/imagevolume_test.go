package provider

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/images"
	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// A volume that is an image is pulled for who mounts it, and held as long as it runs.
func TestImageVolumes(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.images["missing"] = &images.Error{Reason: "ErrImagePull", Err: errors.New("no such image")}
		w.images["volume"] = &images.Error{Reason: "ImagePullBackOff", Err: errors.New("not yet")}
		a := w.boot("")
		w.create("web", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{
				{Name: "data", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "volume", PullPolicy: corev1.PullNever}}},
				{Name: "unused", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "missing"}}},
			}
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
		})
		w.until("waiting for the volume's image", func() bool {
			pod, _ := w.get("web")
			return len(pod.Status.ContainerStatuses) > 0 && pod.Status.ContainerStatuses[0].State.Waiting != nil &&
				pod.Status.ContainerStatuses[0].State.Waiting.Reason == "ImagePullBackOff"
		})
		w.mu.Lock()
		delete(w.images, "volume")
		w.mu.Unlock()
		w.until("Running", w.podIs("web", corev1.PodRunning))
		w.mu.Lock()
		if policy := w.policies["volume"]; policy != corev1.PullNever {
			t.Errorf("the volume's image is pulled by the policy %q", policy)
		}
		w.mu.Unlock()
		mounts := w.launched("app").Mounts
		if !slices.ContainsFunc(mounts, func(m launchspec.Mount) bool {
			return m.Kind == launchspec.MountImage && m.Target == "/data" && m.Readonly
		}) {
			t.Errorf("mounts %+v", mounts)
		}
		a.stop()
		a = w.boot("")
		<-a.provider.Ready()
		used, err := a.provider.ImagesInUse(t.Context())
		if err != nil || !slices.Contains(used, "volume@sha256:1") {
			t.Errorf("images in use for the next agent: %v %v", used, err)
		}
	})
}

func TestSubPathsOfImagesMustBeThere(t *testing.T) {
	layer := t.TempDir()
	mount := launchspec.Mount{Kind: launchspec.MountImage, Lowers: []string{t.TempDir(), layer}, SubPath: "etc"}
	if err := checkImagePaths([]launchspec.Mount{mount}); err == nil {
		t.Error("a sub-path that no layer has is taken")
	}
	mount.Lowers = append(mount.Lowers, "/")
	if err := checkImagePaths([]launchspec.Mount{mount}); err != nil {
		t.Error(err)
	}
	mount.SubPath = "../etc"
	if err := checkImagePaths([]launchspec.Mount{mount}); err == nil {
		t.Error("a sub-path leads out of its image")
	}
}
