package podplan

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

func TestPreemptPicksWhatMattersLeast(t *testing.T) {
	made := func(uid, cpu string, priority int32) *corev1.Pod {
		pod := basePod()
		pod.UID, pod.Spec.Priority = types.UID(uid), ptr.To(priority)
		if cpu != "" {
			pod.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
		}
		return pod
	}
	critical := func(p *corev1.Pod) bool { return priority(p) >= SystemCritical }
	place := Place{
		Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourcePods: resource.MustParse("10")},
		Others: []*corev1.Pod{
			made("vital", "1", SystemCritical), made("big", "2", 0), made("small", "500m", 0), made("dear", "500m", 1000), made("idle", "", 0),
		},
	}
	for name, tc := range map[string]struct {
		pod  *corev1.Pod
		want []types.UID
	}{
		"one is enough":          {made("new", "500m", SystemCritical), []types.UID{"small"}},
		"the big one spares all": {made("new", "2", SystemCritical), []types.UID{"big"}},
		"nearly all":             {made("new", "3", SystemCritical), []types.UID{"big", "small", "dear"}},
		"never enough":           {made("new", "4", SystemCritical), nil},
		"not critical":           {made("new", "500m", SystemCritical-1), nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []types.UID
			for _, v := range Preempt(tc.pod, Admit(tc.pod, place), place, critical) {
				got = append(got, v.UID)
			}
			slices.Sort(got)
			want := slices.Clone(tc.want)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
	if list := Preempt(made("new", "500m", SystemCritical), &Refusal{Admission: "NodePorts"}, place, critical); list != nil {
		t.Errorf("for a port: %v", list)
	}
}
