package csi

import (
	"slices"
	"testing"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// TestMountedWithLabel: the driver gets the label as a mount option where it says that it can, for
// volumes of one pod; an agent that is started again knows.
func TestMountedWithLabel(t *testing.T) {
	const label, option = "system_u:object_r:container_file_t:s0:c1,c2", `context="system_u:object_r:container_file_t:s0:c1,c2"`
	for _, tc := range []struct {
		name  string
		able  *bool
		mode  corev1.PersistentVolumeAccessMode
		label string
		want  bool
	}{
		{"able", new(true), corev1.ReadWriteOncePod, label, true},
		{"not able", new(false), corev1.ReadWriteOncePod, label, false},
		{"nothing said", nil, corev1.ReadWriteOncePod, label, false},
		{"for more pods", new(true), corev1.ReadWriteOnce, label, false},
		{"no label", new(true), corev1.ReadWriteOncePod, "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			driver := newDriver(t, csispec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME)
			w := newWorld(t, driver, secret(), csiDriver(func(s *storagev1.CSIDriverSpec) { s.SELinuxMount = tc.able }))
			v := volumeOf("pod-1")
			v.MountLabel, v.PV.Spec.AccessModes = tc.label, []corev1.PersistentVolumeAccessMode{tc.mode}
			defer w.unpublish(v)
			if got := w.publish(v).Labelled; got != tc.want {
				t.Errorf("labelled: %t, want %t", got, tc.want)
			}
			staged := driver.staged[0].VolumeCapability.GetMount().MountFlags
			published := driver.published[0].VolumeCapability.GetMount().MountFlags
			if slices.Contains(staged, option) != tc.want || slices.Contains(published, option) != tc.want || !slices.Contains(staged, "noatime") {
				t.Errorf("staged with %q, published with %q", staged, published)
			}
			w.restart()
			if got := w.publish(v).Labelled; got != tc.want {
				t.Errorf("labelled, after a restart: %t, want %t", got, tc.want)
			}
		})
	}
}
