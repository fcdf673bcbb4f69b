package provider

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"
)

func TestPodThatFillsTheDiskIsEvicted(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.boot("")
		limited := func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse("1Mi")}
		}
		w.create("layer", limited)
		w.create("hosts", limited) // CVE-2020-8557
		w.create("message", limited)
		w.create("modest", limited)
		w.create("volume", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: ptr.To(resource.MustParse("1Mi"))},
			}}}
		})
		for _, name := range []string{"layer", "hosts", "message", "modest", "volume"} {
			w.until("Running", w.podIs(name, corev1.PodRunning))
		}
		fill := func(path string) {
			t.Helper()
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, make([]byte, 2<<20), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		fill(w.layout.Layer("uid-layer", "app", 0) + "/upper/big")
		fill(w.layout.PodLib("uid-volume") + "/volumes/kubernetes.io~empty-dir/data/big")
		fill(w.layout.PodLib("uid-hosts") + "/etc/hosts")
		fill(w.layout.PodLib("uid-message") + "/containers/app/0.termination-log")
		const limit = "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. "
		for name, message := range map[string]string{
			"layer": limit, "hosts": limit, "message": limit,
			"volume": `Usage of EmptyDir volume "data" exceeds the limit "1Mi". `,
		} {
			w.until("evicted", w.podIs(name, corev1.PodFailed))
			if pod, _ := w.get(name); pod.Status.Reason != "Evicted" || pod.Status.Message != message {
				t.Errorf("%s: %s: %q", name, pod.Status.Reason, pod.Status.Message)
			}
		}
		if !w.said("Warning Evicted Usage of EmptyDir") {
			t.Errorf("no event: %v", w.events)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if pod, _ := w.get("modest"); pod.Status.Phase != corev1.PodRunning || len(w.starts) != 5 {
			t.Errorf("the modest pod is %s; starts %v", pod.Status.Phase, w.starts)
		}
	})
}
