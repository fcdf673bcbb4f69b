package provider

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/internal/pressure"
	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/systemd"
)

// usage has the working sets of units and slices, in MiB; the others have no cgroup.
type usage map[string]uint64

func (u usage) Stats(_ context.Context, name string) (systemd.Stats, error) {
	for part, mi := range u {
		if strings.Contains(name, part) {
			return systemd.Stats{MemoryWorkingSet: mi << 20, Processes: 3}, nil
		}
	}
	return systemd.Stats{}, systemd.ErrNoCgroup
}

func requests(memory string, priority int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Priority = ptr.To(priority)
		p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](30)
		if memory != "" {
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memory)}
		}
	}
}

func TestPodIsEvictedForWantOfMemory(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.facts = func(d *Deps) { d.Usage = usage{"modest": 50, "greedy": 500} }
		w.deaf["app"] = true
		a := w.boot("")
		w.create("modest", requests("100Mi", 0))
		w.create("greedy", requests("100Mi", 0))
		w.create("critical", requests("", podplan.SystemCritical))
		for _, name := range []string{"modest", "greedy", "critical"} {
			w.until("Running", w.podIs(name, corev1.PodRunning))
		}
		list, err := a.provider.Candidates(t.Context(), pressure.MemoryAvailable)
		if err != nil || len(list) != 2 {
			t.Fatalf("%+v %v", list, err)
		}
		first := pressure.Rank(pressure.MemoryAvailable, list)[0]
		if first.Pod.Name != "greedy" || first.Usage.Memory != 500<<20 || first.Usage.Containers["app"] != 500<<20 || first.Usage.Processes != 3 {
			t.Fatalf("%s %+v", first.Pod.Name, first.Usage)
		}
		begun := time.Now()
		freed := a.provider.Evict("uid-greedy", "The node was low on resource: memory. ", time.Second)
		if freed == nil || a.provider.Evict("uid-greedy", "", 0) != nil || a.provider.Evict("uid-critical", "", 0) != nil {
			t.Fatal("one pod is to be evicted once, the critical one never")
		}
		<-freed
		if took := time.Since(begun); took > 3*time.Second {
			t.Errorf("a deaf process was given %s", took)
		}
		w.until("evicted", w.podIs("greedy", corev1.PodFailed))
		w.checkEvicted("greedy")
		if !w.said("Warning Evicted The node was low") || !w.podIs("modest", corev1.PodRunning)() || !w.podIs("critical", corev1.PodRunning)() {
			t.Errorf("events %v", w.events)
		}
		if list, _ := a.provider.Candidates(t.Context(), pressure.NodeFSAvailable); len(list) != 1 || list[0].Usage.Inodes == 0 {
			t.Errorf("candidates for want of disk: %+v", list)
		}
	})
}

// TestNextAgentEvictsNobodyTwice: an agent that comes into an eviction goes on with it.
func TestNextAgentEvictsNobodyTwice(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.deaf["app"] = true
		a := w.boot("")
		w.create("a", requests("", 0))
		w.until("Running", w.podIs("a", corev1.PodRunning))
		if a.provider.Evict("uid-a", "The node was low on resource: memory. ", 20*time.Second) == nil {
			t.Fatal("not evicted")
		}
		time.Sleep(5 * time.Second)
		a.stop()
		a = w.boot("")
		<-a.provider.Ready()
		synctest.Wait()
		if list, err := a.provider.Candidates(t.Context(), pressure.MemoryAvailable); err != nil || len(list) > 0 {
			t.Errorf("candidates %+v, %v", list, err)
		}
		if a.provider.Evict("uid-a", "again", time.Second) != nil {
			t.Error("evicted twice")
		}
		w.until("evicted", w.podIs("a", corev1.PodFailed))
		w.checkEvicted("a")
	})
}

func (w *world) checkEvicted(name string) {
	w.t.Helper()
	pod, _ := w.get(name)
	if pod.Status.Reason != "Evicted" || pod.Status.Message != "The node was low on resource: memory. " {
		w.t.Errorf("%s: %q", pod.Status.Reason, pod.Status.Message)
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.DisruptionTarget {
			if c.Status != corev1.ConditionTrue || c.Reason != corev1.PodReasonTerminationByKubelet || c.Message != pod.Status.Message {
				w.t.Errorf("%+v", c)
			}
			return
		}
	}
	w.t.Errorf("no DisruptionTarget among %+v", pod.Status.Conditions)
}

func TestNodeUnderPressureAdmitsFewerPods(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		var mu sync.Mutex
		var holds []corev1.NodeConditionType
		w.facts = func(d *Deps) {
			d.Node.Pressure = func() []corev1.NodeConditionType { mu.Lock(); defer mu.Unlock(); return holds }
		}
		a := w.boot("")
		w.create("before", requests("", 0))
		w.until("Running", w.podIs("before", corev1.PodRunning))
		set := func(now ...corev1.NodeConditionType) { mu.Lock(); holds = now; mu.Unlock() }
		set(corev1.NodeMemoryPressure)
		w.create("best-effort", requests("", 0))
		w.until("refused", w.podIs("best-effort", corev1.PodFailed))
		pod, _ := w.get("best-effort")
		if pod.Status.Reason != "Evicted" || pod.Status.Message != "Pod was rejected: The node had condition: [MemoryPressure]. " {
			t.Errorf("%s: %q", pod.Status.Reason, pod.Status.Message)
		}
		w.create("burstable", requests("10Mi", 0))
		w.until("Running", w.podIs("burstable", corev1.PodRunning))
		set(corev1.NodeDiskPressure, corev1.NodeMemoryPressure)
		w.create("also-burstable", requests("10Mi", 0))
		w.until("refused", w.podIs("also-burstable", corev1.PodFailed))
		w.create("critical", requests("", podplan.SystemCritical))
		w.until("Running", w.podIs("critical", corev1.PodRunning))
		a.stop() // a new agent judges no running pod
		w.boot("")
		w.create("after", requests("", podplan.SystemCritical))
		w.until("Running", w.podIs("after", corev1.PodRunning))
		if !w.podIs("before", corev1.PodRunning)() || !w.podIs("burstable", corev1.PodRunning)() {
			t.Error("a running pod was refused")
		}
	})
}
