package volumes

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/csi"
)

// fakeCSI publishes directories.
type fakeCSI struct {
	dir   string
	err   error
	calls []string
	stats func() // is called first; may be nil
}

func (f *fakeCSI) Publish(_ context.Context, v csi.Volume) (csi.Published, error) {
	f.calls = append(f.calls, "publish "+v.Name)
	path := filepath.Join(f.dir, v.Name)
	return csi.Published{Path: path, Group: true}, errors.Join(os.MkdirAll(path, 0o755), f.err)
}

func (f *fakeCSI) Unpublish(_ context.Context, v csi.Volume) error {
	f.calls = append(f.calls, "unpublish "+v.Name+" "+string(v.Pod.UID))
	return f.err
}

func (f *fakeCSI) Stats(context.Context, csi.Volume) (*csi.Stats, error) {
	if f.stats != nil {
		f.stats()
	}
	return &csi.Stats{Capacity: 9}, nil
}

func csiManager(t *testing.T) (*Manager, *fakeClaims, *fakeCSI) {
	t.Helper()
	m, claims := claimsManager(t)
	driver := &fakeCSI{dir: t.TempDir()}
	m.opts.CSI = driver
	return m, claims, driver
}

var csiSource = corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "d", VolumeHandle: "h"}}

func TestDriversVolumes(t *testing.T) {
	m, claims, driver := csiManager(t)
	claims.bind("data", csiSource)
	pod := testPod(claimVolume("d", "data"), vol("scratch", corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "d"}}))
	got := prepare(t, m, pod, PodInfo{FSGroup: ptr(int64(4321))})
	if got["d"].Path != filepath.Join(driver.dir, "pv-data") || got["scratch"].Path != filepath.Join(driver.dir, "scratch") {
		t.Errorf("mounted %+v", got)
	}
	wantOwner(t, got["d"].Path, 4321, 0o770)
	usage := m.Usage(t.Context(), pod)
	if len(usage) != 2 || usage[0].Claim != "data" || usage[0].Capacity != 9 {
		t.Errorf("usage %+v", usage)
	}
	driver.calls, driver.err = nil, errors.New("not registered")
	if err := m.Remove(t.Context(), testUID); err == nil {
		t.Error("volumes that are published are forgotten")
	}
	if uids, err := m.List(t.Context()); err != nil || !slices.Contains(uids, testUID) {
		t.Errorf("who has volumes: %v %v", uids, err)
	}
	driver.calls, driver.err = nil, nil
	for range 2 {
		if err := m.Remove(t.Context(), testUID); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"unpublish pv-data " + testUID, "unpublish scratch " + testUID}; !slices.Equal(driver.calls, want) {
		t.Errorf("calls %q, want %q", driver.calls, want)
	}
}

func TestWhatDriversCannotDoIsToldInAKubeletsWords(t *testing.T) {
	m, claims, driver := csiManager(t)
	claims.bind("data", csiSource)
	for _, c := range []struct {
		err  error
		want string
	}{
		{&csi.StageError{Err: errors.New("boom")}, `FailedMount MountVolume.MountDevice failed for volume "pv-data" : boom`},
		{errors.New("boom"), `FailedMount MountVolume.SetUp failed for volume "pv-data" : boom`},
		{&csi.NotAttachedError{Reason: "late"}, `FailedAttachVolume AttachVolume.Attach failed for volume "pv-data" : late`},
		{&csi.NotAttachedError{Reason: "soon", Waiting: true}, ""},
	} {
		driver.err = c.err
		_, err := m.Prepare(t.Context(), testPod(claimVolume("d", "data")), PodInfo{})
		var events []string
		for reason, message := range Events(err) {
			events = append(events, reason+" "+message)
		}
		if got := strings.Join(events, "; "); got != c.want {
			t.Errorf("event %q, want %q", got, c.want)
		}
	}
	driver.err = nil
}
