package volumes

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestResourceField(t *testing.T) {
	quantities := func(pairs ...string) corev1.ResourceList {
		list := corev1.ResourceList{}
		for i := 0; i < len(pairs); i += 2 {
			list[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
		}
		return list
	}
	node := quantities("cpu", "8", "memory", "16Gi", "ephemeral-storage", "100Gi", "hugepages-2Mi", "1Gi")
	ofPod := &corev1.ResourceRequirements{Limits: quantities("cpu", "2", "memory", "64Mi"), Requests: quantities("cpu", "1")}
	own := corev1.ResourceRequirements{Limits: quantities("cpu", "1100m"), Requests: quantities("memory", "3Mi")}
	for name, tc := range map[string]struct {
		pod     *corev1.ResourceRequirements
		field   string
		divisor string
		want    string // "" is an error
	}{
		"own limit, rounded up":          {nil, "limits.cpu", "0", "2"},
		"in thousandths":                 {nil, "limits.cpu", "1m", "1100"},
		"own before the pod's":           {ofPod, "limits.cpu", "1m", "1100"},
		"the pod's":                      {ofPod, "limits.memory", "0", "67108864"},
		"the node's":                     {nil, "limits.memory", "1Gi", "16"},
		"no such limit of pods":          {ofPod, "limits.ephemeral-storage", "1Gi", "100"},
		"huge pages have no default":     {nil, "limits.hugepages-2Mi", "0", "0"},
		"own request":                    {nil, "requests.memory", "2Mi", "2"},
		"a request that is not set is 0": {ofPod, "requests.cpu", "0", "0"},
		"below nothing":                  {nil, "limits.cpu", "-1", ""},
		"no such resource":               {nil, "limits.pods", "0", ""},
		"no such kind":                   {nil, "wishes.cpu", "0", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := corev1.Container{Name: "c", Resources: own}
			pod := &corev1.Pod{Spec: corev1.PodSpec{Resources: tc.pod, Containers: []corev1.Container{c}}}
			ref := &corev1.ResourceFieldSelector{ContainerName: "c", Resource: tc.field, Divisor: resource.MustParse(tc.divisor)}
			got, err := resourceField(pod, ref, node)
			if got != tc.want || (err != nil) != (tc.want == "") {
				t.Errorf("got %q, %v; want %q", got, err, tc.want)
			}
		})
	}
}
