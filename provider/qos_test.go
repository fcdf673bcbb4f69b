package provider

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

// TestPodsTogether: all pods have the node's limits, none where they are not known, and the
// classes below them have weights alone.
func TestPodsTogether(t *testing.T) {
	limited := NodeFacts{PodsMemory: 1 << 30, PodsTasks: 500, Allocatable: func() corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m")}
	}}
	for _, test := range []struct {
		facts                 NodeFacts
		memory, tasks, weight uint64
	}{
		{limited, 1 << 30, 500, 1536},
		{NodeFacts{}, 0, 0, 0},
	} {
		p := &Provider{deps: Deps{Node: test.facts}}
		for _, slice := range p.wantedQOS() {
			r := slice.Resources
			want := [3]uint64{0, 0, 2} // nobody asks for anything
			if slice.Name == podplan.SliceRoot {
				want = [3]uint64{test.memory, test.tasks, test.weight}
			}
			if got := [3]uint64{value(r.MemoryMax), value(r.TasksMax), value(r.CPUShares)}; got != want {
				t.Errorf("%s: memory, processes and weight %v, want %v", slice.Name, got, want)
			}
		}
	}
}

func value(n *uint64) uint64 {
	if n == nil {
		return 0
	}
	return *n
}
