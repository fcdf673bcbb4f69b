package provider

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/systemd"
)

func guaranteed(cpu string) corev1.ResourceRequirements {
	list := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse("64Mi")}
	return corev1.ResourceRequirements{Requests: list, Limits: list}
}

// update changes a pod's spec as an API server would.
func (w *world) update(name string, change func(*corev1.Pod)) {
	pod, _ := w.get(name)
	pod = pod.DeepCopy()
	change(pod)
	pod.Generation++
	if _, err := w.client.CoreV1().Pods("ns").Update(context.Background(), pod, metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func condition(pod *corev1.Pod, kind corev1.PodConditionType) string {
	for _, c := range pod.Status.Conditions {
		if c.Type == kind {
			return c.Reason
		}
	}
	return "none"
}

// TestResize: a pod is resized where there is room, at once or once another has gone; its
// process is the same.
func TestResize(t *testing.T) {
	w := newWorld(t)
	w.allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")}
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.boot("")
		for _, name := range []string{"a", "b"} {
			w.create(name, func(p *corev1.Pod) { p.Spec.Containers[0].Resources = guaranteed("500m") })
			w.until("Running", w.podIs(name, corev1.PodRunning))
		}
		resize := func(cpu string) {
			w.update("a", func(p *corev1.Pod) { p.Spec.Containers[0].Resources = guaranteed(cpu) })
		}
		has := func(cpu, pending string) func() bool {
			return func() bool {
				pod, _ := w.get("a")
				cs := pod.Status.ContainerStatuses[0]
				return cs.Resources.Limits.Cpu().Equal(resource.MustParse(cpu)) && cs.AllocatedResources.Cpu().Equal(resource.MustParse(cpu)) &&
					condition(pod, corev1.PodResizePending) == pending && condition(pod, corev1.PodResizeInProgress) == "none" && cs.RestartCount == 0
			}
		}
		resize("1")
		w.until("resized", has("1", "none"))
		resize("1800m")
		w.until("deferred", has("1", corev1.PodReasonDeferred))
		resize("3")
		w.until("infeasible", has("1", corev1.PodReasonInfeasible))
		resize("1800m")
		w.until("deferred again", has("1", corev1.PodReasonDeferred))
		w.delete("b", 1)
		w.until("resized once there is room", has("1800m", "none"))
	})
	if len(w.starts) != 2 {
		t.Errorf("starts %v", w.starts)
	}
}

// TestResizesInTurn: of the resizes that wait, room goes to the pod with the highest priority, then to
// a guaranteed one, then to who has waited longest; who gives up makes way.
func TestResizesInTurn(t *testing.T) {
	w := newWorld(t)
	w.allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")}
	burstable := func(cpu string) corev1.ResourceRequirements {
		return corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}}
	}
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.boot("")
		resources := map[string]func(string) corev1.ResourceRequirements{"big": burstable, "high": burstable, "sure": guaranteed, "early": burstable, "late": burstable}
		for _, name := range []string{"big", "high", "sure", "early", "late"} {
			cpu := "100m"
			if name == "big" {
				cpu = "1200m"
			}
			w.create(name, func(p *corev1.Pod) {
				p.Spec.Containers[0].Resources = resources[name](cpu)
				if name == "high" {
					p.Spec.Priority = new(int32(1000))
				}
			})
			w.until("Running", w.podIs(name, corev1.PodRunning))
		}
		pending := func(name string) string {
			pod, _ := w.get(name)
			return condition(pod, corev1.PodResizePending)
		}
		for _, name := range []string{"early", "sure", "high", "late"} {
			w.update(name, func(p *corev1.Pod) { p.Spec.Containers[0].Resources = resources[name]("1200m") })
			w.until("deferred", func() bool { return pending(name) == corev1.PodReasonDeferred })
			time.Sleep(2 * time.Second) // they wait for different times
		}
		turn := func(next string, others ...string) {
			t.Helper()
			w.until("the turn of "+next, func() bool {
				pod, _ := w.get(next)
				return pending(next) == "none" && pod.Status.ContainerStatuses[0].AllocatedResources.Cpu().Equal(resource.MustParse("1200m"))
			})
			time.Sleep(time.Minute)
			for _, other := range others {
				if reason := pending(other); reason != corev1.PodReasonDeferred {
					t.Errorf("after %s: %s is %s", next, other, reason)
				}
			}
		}
		w.delete("big", 1)
		turn("high", "sure", "early", "late")
		w.delete("high", 1)
		turn("sure", "early", "late")
		w.update("sure", func(p *corev1.Pod) { p.Spec.Containers[0].Resources = guaranteed("100m") }) // shrinks
		turn("early", "late")
		w.update("late", func(p *corev1.Pod) { p.Spec.Containers[0].Resources = burstable("100m") })
		w.until("given up", func() bool { return pending("late") == "none" })
	})
}

// TestAdmission: what does not fit fails for good, and what runs is not judged again by
// the next agent.
func TestAdmission(t *testing.T) {
	w := newWorld(t)
	w.allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		a := w.boot("")
		w.create("a", func(p *corev1.Pod) { p.Spec.Containers[0].Resources = guaranteed("700m") })
		w.until("Running", w.podIs("a", corev1.PodRunning))
		a.stop()
		w.allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("600m")}
		w.create("b", func(p *corev1.Pod) { p.Spec.Containers[0].Resources = guaranteed("500m") })
		w.boot("")
		w.until("rejected", w.podIs("b", corev1.PodFailed))
		if pod, _ := w.get("b"); pod.Status.Reason != "OutOfcpu" {
			t.Errorf("reason %q, message %q", pod.Status.Reason, pod.Status.Message)
		} else if len(pod.Status.ContainerStatuses) > 0 {
			t.Errorf("a rejected pod has states of containers: %v", pod.Status.ContainerStatuses)
		}
		if pod, _ := w.get("a"); pod.Status.Phase != corev1.PodRunning {
			t.Errorf("the running pod is %s", pod.Status.Phase)
		}
		w.delete("a", 1)
		w.delete("b", 1)
		w.until("nothing left", func() bool { return len(w.left()) == 0 })
		w.create("c", func(p *corev1.Pod) { p.Spec.Containers[0].Resources = guaranteed("500m") })
		w.until("Running", w.podIs("c", corev1.PodRunning))
	})
}

// TestRoomOfADeletedPod: the place of a pod whose object is gone is free at once, though its
// process is not.
func TestRoomOfADeletedPod(t *testing.T) {
	w := newWorld(t)
	w.allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.deaf["app"] = true
		w.boot("")
		most := func(p *corev1.Pod) { p.Spec.Containers[0].Resources = guaranteed("700m") }
		w.create("a", most)
		w.until("Running", w.podIs("a", corev1.PodRunning))
		w.delete("a", 0) // by force
		synctest.Wait()
		if !w.runs("app") {
			t.Error("the process has ended already")
		}
		w.create("b", most)
		w.until("admitted", w.podIs("b", corev1.PodRunning))
		w.delete("b", 0)
		w.until("nothing left", func() bool { return len(w.left()) == 0 })
	})
}

// heavy is a node where every group uses a mebibyte of two.
type heavy struct{ Usage }

func (heavy) Stats(context.Context, string) (systemd.Stats, error) {
	return systemd.Stats{MemoryUsage: 1 << 20, MemoryLimit: 2 << 20}, nil
}

// TestMemoryInUseIsNotTakenAway: in a kubelet's words, which name the container or the pod.
func TestMemoryInUseIsNotTakenAway(t *testing.T) {
	little, enough := uint64(10<<10), uint64(3<<20)
	w := &worker{p: &Provider{deps: Deps{Usage: heavy{}}}}
	units := map[string]podplan.Resize{"c.service": {Container: "c1"}}
	for want, tc := range map[string]struct{ container, pod *uint64 }{
		`cannot decrease memory limits: attempting to set container "c1" memory limit (10240) below current usage (1048576)`: {&little, &enough},
		"cannot decrease memory limits: attempting to set pod memory limit (10240) below current usage (1048576)":            {&enough, &little},
		"": {&enough, &enough},
	} {
		limits := map[string]systemd.Resources{"c.service": {MemoryMax: tc.container}}
		wanted := systemd.Slice{Name: "pod.slice", Resources: systemd.Resources{MemoryMax: tc.pod}}
		err := w.checkUsage(t.Context(), systemd.Slice{}, wanted, limits, units)
		if got := fmt.Sprint(err); want != "" && got != want || want == "" && err != nil {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
