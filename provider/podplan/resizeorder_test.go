package podplan

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// resizing is a pod that has, or asks for, so much CPU.
func resizing(name, cpu string, priority int32) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}}
	pod.Spec.Priority = &priority
	pod.Spec.Containers = []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)},
	}}}
	return pod
}

func TestAdmitResizeInTurn(t *testing.T) {
	start := time.Unix(1000, 0)
	asks := func(name, cpu string, priority int32, after int) Deferred {
		return Deferred{resizing(name, cpu, priority), start.Add(time.Duration(after) * time.Second)}
	}
	has := func(cpus map[string]string) Place {
		place := Place{Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")}}
		for name, cpu := range cpus {
			place.Others = append(place.Others, resizing(name, cpu, 0))
		}
		return place
	}
	small := map[string]string{"a": "100m", "b": "100m", "c": "100m"}
	for name, tc := range map[string]struct {
		mine    Deferred
		waiting []Deferred
		place   Place
		reason  string
		first   []types.UID
	}{
		"nobody else":               {asks("a", "1800m", 0, 0), nil, has(small), "", nil},
		"behind a higher priority":  {asks("a", "1800m", 0, 0), []Deferred{asks("b", "1800m", 1, 5)}, has(small), corev1.PodReasonDeferred, []types.UID{"b"}},
		"before a lower priority":   {asks("a", "1800m", 1, 5), []Deferred{asks("b", "1800m", 0, 0)}, has(small), "", nil},
		"behind who waits longer":   {asks("a", "1800m", 0, 5), []Deferred{asks("b", "1800m", 0, 0)}, has(small), corev1.PodReasonDeferred, []types.UID{"b"}},
		"room for both":             {asks("a", "800m", 0, 5), []Deferred{asks("b", "800m", 0, 0)}, has(small), "", []types.UID{"b"}},
		"who is first does not fit": {asks("a", "500m", 0, 5), []Deferred{asks("b", "1900m", 1, 0)}, has(map[string]string{"a": "100m", "b": "100m", "c": "1"}), "", nil},
		"the second of two fits":    {asks("a", "800m", 0, 9), []Deferred{asks("c", "900m", 0, 1), asks("b", "900m", 1, 5)}, has(small), corev1.PodReasonDeferred, []types.UID{"b", "c"}},
		"never":                     {asks("a", "3", 0, 0), nil, has(small), corev1.PodReasonInfeasible, nil},
	} {
		t.Run(name, func(t *testing.T) {
			reason, message, first := AdmitResizeInTurn(tc.mine, tc.waiting, tc.place)
			if reason != tc.reason || !slices.Equal(first, tc.first) {
				t.Errorf("= %q (%s), first %v; want %q, %v", reason, message, first, tc.reason, tc.first)
			}
		})
	}
}

func TestResizeMessage(t *testing.T) {
	pod := resizing("a", "1", 0)
	pod.Generation = 3
	want := `Pod resize Deferred: {"containers":[{"name":"c","resources":{"requests":{"cpu":"1"}}}],"generation":3,"error":"no room"}`
	if got := ResizeMessage(corev1.PodReasonDeferred, pod, "no room"); got != want {
		t.Errorf("= %s, want %s", got, want)
	}
}
