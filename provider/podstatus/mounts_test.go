package podstatus

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

// TestMountsInStatus: what was made of a read-only mount is told as by a kubelet.
func TestMountsInStatus(t *testing.T) {
	var c podplan.Container
	modes := []*corev1.RecursiveReadOnlyMode{
		nil, ptr.To(corev1.RecursiveReadOnlyDisabled), ptr.To(corev1.RecursiveReadOnlyIfPossible), ptr.To(corev1.RecursiveReadOnlyEnabled),
	}
	for _, mode := range modes {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "v", MountPath: "/v", ReadOnly: true, RecursiveReadOnly: mode})
	}
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "w", MountPath: "/w"})
	want := []string{"Disabled", "Disabled", "Enabled", "Enabled", ""}
	for i, got := range volumeMounts(c) {
		if mode := string(ptr.Deref(got.RecursiveReadOnly, "")); mode != want[i] || got.ReadOnly != (i < 4) || got.Name != c.VolumeMounts[i].Name || got.MountPath != c.VolumeMounts[i].MountPath {
			t.Errorf("mount %d is told as %+v, want %q", i, got, want[i])
		}
	}
}
