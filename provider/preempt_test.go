package provider

import (
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

func TestCriticalPodGetsItsRoom(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourcePods: resource.MustParse("10")}
		w.boot("")
		wants := func(cpu string, priority int32) func(*corev1.Pod) {
			return func(p *corev1.Pod) {
				p.Spec.Priority = ptr.To(priority)
				p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
			}
		}
		w.create("stays", wants("500m", 1000))
		w.create("goes", wants("1500m", 0))
		for _, name := range []string{"stays", "goes"} {
			w.until("Running", w.podIs(name, corev1.PodRunning))
		}
		w.create("ordinary", wants("1", 1_000_000))
		w.until("refused", w.podIs("ordinary", corev1.PodFailed))
		w.create("critical", wants("1", podplan.SystemCritical))
		w.until("Running", w.podIs("critical", corev1.PodRunning))
		if pod, _ := w.get("goes"); pod.Status.Phase != corev1.PodFailed || pod.Status.Reason != "Preempting" {
			t.Errorf("%s %s", pod.Status.Phase, pod.Status.Reason)
		}
		if !w.podIs("stays", corev1.PodRunning)() || !w.said("Warning Preempting") {
			t.Errorf("events %v", w.events)
		}
	})
}
