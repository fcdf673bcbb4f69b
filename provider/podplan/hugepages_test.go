package podplan

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

func TestHugePages(t *testing.T) {
	const mi = 1 << 20
	limits := func(text string) corev1.ResourceRequirements {
		if text == "" {
			return corev1.ResourceRequirements{}
		}
		return corev1.ResourceRequirements{Limits: corev1.ResourceList{"hugepages-2Mi": resource.MustParse(text)}}
	}
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{
		{Name: "a", Resources: limits("4Mi")}, {Name: "b", Resources: limits("6Mi")}, {Name: "none"},
	}}}
	sizes := []corev1.ResourceName{"hugepages-1Gi", "hugepages-2Mi", "hugepages-64Ki"}
	for name, container := range map[string]uint64{"a": 4 * mi, "b": 6 * mi, "none": 0} {
		c, _ := Find(pod, name)
		want := []launchspec.HugePages{{Size: "1GB"}, {Size: "2MB", Container: container, Pod: 10 * mi}, {Size: "64KB"}}
		if got := hugePages(pod, c, sizes); !slices.Equal(got, want) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	shared := limits("8Mi")
	pod.Spec.Resources = &shared
	c, _ := Find(pod, "none")
	if got := hugePages(pod, c, sizes[1:2]); !slices.Equal(got, []launchspec.HugePages{{Size: "2MB", Container: 8 * mi, Pod: 8 * mi}}) {
		t.Errorf("what the pod's containers share: %+v", got)
	}
	if got := hugePages(pod, c, nil); got != nil {
		t.Errorf("a node without huge pages: %+v", got)
	}
	if got := Refusals(pod, Policy{}); len(got) != 3 || got[0].Field != "spec.resources.limits" || got[1].Field != "spec.containers{a}.resources.limits" {
		t.Errorf("a node without huge pages takes the pod: %v", got)
	}
	if got := Refusals(pod, Policy{HugePages: true}); len(got) != 0 {
		t.Errorf("refused: %v", got)
	}
}
