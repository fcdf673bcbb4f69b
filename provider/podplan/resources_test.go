package podplan

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// TestContainerResources: limits that are the pod's are each container's own, unless it has
// some; a request of nothing is no missing request.
func TestContainerResources(t *testing.T) {
	list := func(cpu, memory string) corev1.ResourceList {
		l := corev1.ResourceList{}
		for name, value := range map[corev1.ResourceName]string{corev1.ResourceCPU: cpu, corev1.ResourceMemory: memory} {
			if value != "" {
				l[name] = resource.MustParse(value)
			}
		}
		return l
	}
	for name, c := range map[string]struct {
		pod, own corev1.ResourceRequirements
		shares   uint64
		quota    time.Duration
		memory   uint64
	}{
		"nothing":          {shares: 2},
		"own limits":       {own: corev1.ResourceRequirements{Limits: list("500m", "64Mi")}, shares: 512, quota: 500 * time.Millisecond, memory: 64 << 20},
		"own request":      {own: corev1.ResourceRequirements{Requests: list("250m", ""), Limits: list("1", "")}, shares: 256, quota: time.Second},
		"request nothing":  {own: corev1.ResourceRequirements{Requests: list("0", ""), Limits: list("1", "")}, shares: 2, quota: time.Second},
		"the pod's limits": {pod: corev1.ResourceRequirements{Limits: list("2", "128Mi")}, shares: 2048, quota: 2 * time.Second, memory: 128 << 20},
		"the pod's limits beside own": {
			pod: corev1.ResourceRequirements{Limits: list("2", "128Mi")}, own: corev1.ResourceRequirements{Limits: list("", "64Mi")},
			shares: 2048, quota: 2 * time.Second, memory: 64 << 20,
		},
	} {
		pod := basePod()
		pod.Spec.Containers[0].Resources = c.own
		if len(c.pod.Limits) > 0 {
			pod.Spec.Resources = &c.pod
		}
		r := ContainerResources(pod, Containers(pod)[0])
		var quota time.Duration
		if r.CPUQuota != nil {
			quota = *r.CPUQuota
		}
		var memory uint64
		if r.MemoryMax != nil {
			memory = *r.MemoryMax
		}
		if *r.CPUShares != c.shares || quota != c.quota || memory != c.memory {
			t.Errorf("%s: shares %d, quota %s, memory %d; want %d, %s, %d", name, *r.CPUShares, quota, memory, c.shares, c.quota, c.memory)
		}
	}
}
