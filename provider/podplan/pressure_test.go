package podplan

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestUnderPressure(t *testing.T) {
	memory := []corev1.NodeConditionType{corev1.NodeMemoryPressure}
	disk := []corev1.NodeConditionType{corev1.NodeDiskPressure}
	both := []corev1.NodeConditionType{corev1.NodeDiskPressure, corev1.NodeMemoryPressure}
	pod := func(request string, tolerates ...corev1.Toleration) *corev1.Pod {
		p := &corev1.Pod{Spec: corev1.PodSpec{Tolerations: tolerates, Containers: []corev1.Container{{Name: "c"}}}}
		if request != "" {
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(request)}
		}
		return p
	}
	toleration := corev1.Toleration{Key: corev1.TaintNodeMemoryPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}
	for name, tc := range map[string]struct {
		pod        *corev1.Pod
		conditions []corev1.NodeConditionType
		refused    string
	}{
		"no pressure":                    {pod(""), nil, ""},
		"memory, no request":             {pod(""), memory, "The node had condition: [MemoryPressure]. "},
		"memory, a request":              {pod("1Mi"), memory, ""},
		"memory, tolerated":              {pod("", toleration), memory, ""},
		"disk, a request":                {pod("1Mi"), disk, "The node had condition: [DiskPressure]. "},
		"disk, memory's toleration":      {pod("", toleration), disk, "The node had condition: [DiskPressure]. "},
		"memory and disk, both requests": {pod("1Mi", toleration), both, "The node had condition: [DiskPressure MemoryPressure]. "},
	} {
		got := UnderPressure(tc.pod, tc.conditions)
		if got == nil && tc.refused != "" || got != nil && (got.Reason != tc.refused || got.Admission != "Evicted") {
			t.Errorf("%s: %+v, want %q", name, got, tc.refused)
		}
	}
}
