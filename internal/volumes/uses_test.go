package volumes

import (
	"maps"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestUnusedVolumesHoldNothingBack: what no container uses is not made, and that it could not be is
// nobody's concern.
func TestUnusedVolumesHoldNothingBack(t *testing.T) {
	m, claims := claimsManager(t)
	missing := corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}}}
	empty := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
	claims.bind("data", local(t.TempDir()))
	pod := testPod(vol("mounted", empty), vol("env", empty), vol("init", empty), vol("later", empty), vol("config", missing), claimVolume("claim", "none"), claimVolume("data", "data"))
	pod.Spec.EphemeralContainers = nil
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "mounted"}}
	pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "A", Value: "b"}, {
		Name: "B", ValueFrom: &corev1.EnvVarSource{FileKeyRef: &corev1.FileKeySelector{VolumeName: "env"}},
	}}
	pod.Spec.InitContainers = []corev1.Container{{VolumeMounts: []corev1.VolumeMount{{Name: "init"}}}}
	got := prepare(t, m, pod, PodInfo{})
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, []string{"env", "init", "mounted"}) {
		t.Errorf("made %v", names)
	}
	if err := m.Update(t.Context(), pod, PodInfo{}); err != nil {
		t.Error("update:", err)
	}
	if records, err := m.records(testUID); err != nil || len(records) > 0 {
		t.Errorf("records %v, %v", records, err)
	}
	if Lacks(pod, got) {
		t.Error("it lacks one")
	}
	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		VolumeMounts: []corev1.VolumeMount{{Name: "later"}},
	}}}
	if !Lacks(pod, got) {
		t.Error("it lacks none")
	}
	if got = prepare(t, m, pod, PodInfo{}); got["later"].Path == "" || Lacks(pod, got) {
		t.Errorf("mounted %+v", got)
	}
}
