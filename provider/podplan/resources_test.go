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

func TestOOMScoreIsAKubelets(t *testing.T) {
	const capacity = 10 << 30
	gig := func(n string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(n)}
	}
	always := corev1.ContainerRestartPolicyAlways
	for name, tc := range map[string]struct {
		change func(*corev1.Pod)
		app    int
		side   int
	}{
		"own request":              {func(*corev1.Pod) {}, 900, 900},
		"the sidecar has more":     {func(p *corev1.Pod) { p.Spec.InitContainers[0].Resources.Requests = gig("3Gi") }, 900, 700},
		"the pod has more":         {func(p *corev1.Pod) { p.Spec.Resources = &corev1.ResourceRequirements{Requests: gig("5Gi")} }, 700, 700},
		"all of the node":          {func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = gig("10Gi") }, 3, 3},
		"next to nothing":          {func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = gig("1") }, 999, 999},
		"nothing":                  {func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = nil }, 1000, 1000},
		"critical for the node":    {func(p *corev1.Pod) { p.Spec.PriorityClassName = "system-node-critical" }, -997, -997},
		"critical for the cluster": {func(p *corev1.Pod) { p.Spec.PriorityClassName = "system-cluster-critical" }, 900, 900},
	} {
		t.Run(name, func(t *testing.T) {
			pod := basePod()
			pod.Spec.Containers[0].Resources.Requests = gig("1Gi")
			pod.Spec.InitContainers = []corev1.Container{{Name: "side", Image: "img", RestartPolicy: &always}}
			tc.change(pod)
			side, app := Containers(pod)[0], Containers(pod)[1]
			if a, s := oomScoreAdjust(pod, app, capacity), oomScoreAdjust(pod, side, capacity); a != tc.app || s != tc.side {
				t.Errorf("got %d and %d for the sidecar, want %d and %d", a, s, tc.app, tc.side)
			}
		})
	}
}
