package volumes

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// refused are the types that this node has not, of pods' volumes, PersistentVolumes and projections;
// docs/volumes.md says so.
var refused = []string{
	"iscsi", "fc", "cephfs", "rbd", "glusterfs", "quobyte", "scaleIO", "storageos", "flocker", "photonPersistentDisk", "flexVolume", "gitRepo",
}

// each calls do with every member of a union of the API, and its JSON name.
func each[T any](do func(name string, member T)) {
	kind := reflect.TypeFor[T]()
	for i := range kind.NumField() {
		var member T
		field := reflect.ValueOf(&member).Elem().Field(i)
		field.Set(reflect.New(field.Type().Elem()))
		name, _, _ := strings.Cut(kind.Field(i).Tag.Get("json"), ",")
		do(name, member)
	}
}

// TestEveryTypeOfVolume: each type that the API has is made, or refused by its name: one that comes
// with a newer API is not passed over.
func TestEveryTypeOfVolume(t *testing.T) {
	m, claims, _ := csiManager(t)
	check := func(what, name string, err error) {
		t.Helper()
		says := err != nil && strings.Contains(err.Error(), "not supported by this node")
		if want := slices.Contains(refused, name); says != want {
			t.Errorf("%s %s: %v; refused: %v", what, name, err, want)
		}
		if says && !strings.Contains(err.Error(), name) {
			t.Errorf("%s %s: %v does not name it", what, name, err)
		}
	}
	each(func(name string, src corev1.VolumeSource) {
		_, err := m.Prepare(t.Context(), testPod(vol("v", src)), PodInfo{})
		check("volume", name, err)
		var located *Error
		if err != nil && (!errors.As(err, &located) || !strings.HasPrefix(located.Field, "spec.volumes[0]."+name)) {
			t.Errorf("volume %s: %v is not about it", name, err)
		}
		m.removed(t)
	})
	each(func(name string, src corev1.PersistentVolumeSource) {
		claims.bind("data", src)
		_, err := m.Prepare(t.Context(), testPod(claimVolume("v", "data")), PodInfo{})
		check("PersistentVolume", name, err)
		m.removed(t)
	})
	each(func(name string, src corev1.VolumeProjection) {
		pod := testPod(vol("v", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{src}}}))
		_, err := m.Prepare(t.Context(), pod, PodInfo{})
		check("projection", name, err)
		m.removed(t)
	})
}

func (m *Manager) removed(t *testing.T) {
	t.Helper()
	if err := m.Remove(t.Context(), testUID); err != nil {
		t.Error(err)
	}
}

// TestVolumeOfOnePod: ReadWriteOncePod is held also against pods that no scheduler has seen.
func TestVolumeOfOnePod(t *testing.T) {
	m, claims := claimsManager(t)
	modes := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
	claims.bind("data", local(t.TempDir()), func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) { pv.Spec.AccessModes = modes })
	one, other := testPod(claimVolume("d", "data")), testPod(claimVolume("d", "data"))
	other.UID = "99999999-2222-3333-4444-555555555555"
	for range 2 {
		prepare(t, m, one, PodInfo{})
		_, err := m.Prepare(t.Context(), other, PodInfo{})
		const want = `MountVolume.SetUp failed for volume "pv-data" : volume uses the ReadWriteOncePod access mode and is already in use by another pod`
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	m.removed(t)
	prepare(t, m, other, PodInfo{})
	if _, err := m.Prepare(t.Context(), one, PodInfo{}); err == nil {
		t.Error("it is two pods' now")
	}
	if err := m.Remove(t.Context(), string(other.UID)); err != nil {
		t.Fatal(err)
	}
	claims.bind("data", local(t.TempDir()), func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
		pv.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod, corev1.ReadWriteOnce}
	})
	prepare(t, m, one, PodInfo{})
	prepare(t, m, other, PodInfo{})
}
