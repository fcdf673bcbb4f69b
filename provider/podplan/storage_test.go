package podplan

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"
)

func TestStorageVerdict(t *testing.T) {
	limit := func(q string) corev1.ResourceRequirements {
		return corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse(q)}}
	}
	pod := basePod()
	pod.Spec.Containers = []corev1.Container{{Name: "a", Resources: limit("2Mi")}, {Name: "b", Resources: limit("3Mi")}}
	pod.Spec.Volumes = []corev1.Volume{
		{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: ptr.To(resource.MustParse("1Mi"))}}},
		{Name: "shm", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{
			Medium: corev1.StorageMediumMemory, SizeLimit: ptr.To(resource.MustParse("1Ki")),
		}}},
		{Name: "free", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	}
	const mi = 1 << 20
	for name, tc := range map[string]struct {
		usage StorageUsage
		want  string
	}{
		"within":           {StorageUsage{Containers: map[string]int64{"a": 2 * mi, "b": mi}, Volumes: map[string]int64{"data": mi}}, ""},
		"a volume":         {StorageUsage{Volumes: map[string]int64{"data": mi + 1}}, "Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\". "},
		"memory is apart":  {StorageUsage{Volumes: map[string]int64{"shm": mi}}, ""},
		"a container":      {StorageUsage{Containers: map[string]int64{"a": 2*mi + 1}}, "Container a exceeded its local ephemeral storage limit \"2Mi\". "},
		"the pod in all":   {StorageUsage{Containers: map[string]int64{"a": 2 * mi, "b": 3 * mi}, Volumes: map[string]int64{"free": 1}}, "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. "},
		"nothing is known": {StorageUsage{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			if v := StorageVerdict(pod, tc.usage); v != nil {
				if got = v.Message; v.Reason != "Evicted" || v.Disrupts {
					t.Errorf("%+v", v)
				}
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	if !LimitsStorage(pod) || LimitsStorage(basePod()) {
		t.Error("LimitsStorage")
	}
}
