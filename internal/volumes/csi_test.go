package volumes

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/csi"
)

// fakeCSI publishes directories.
type fakeCSI struct {
	dir     string
	err     error
	stats   func()                                        // is called first; may be nil
	publish func(ctx context.Context, v csi.Volume) error // is called first; may be nil
	mu      sync.Mutex
	calls   []string
}

func (f *fakeCSI) called(call string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
	slices.Sort(f.calls) // volumes are worked on side by side
}

func (f *fakeCSI) Publish(ctx context.Context, v csi.Volume) (csi.Published, error) {
	f.called("publish " + v.Name)
	if f.publish != nil {
		if err := f.publish(ctx, v); err != nil {
			return csi.Published{}, err
		}
	}
	path := filepath.Join(f.dir, v.Name)
	return csi.Published{Path: path, Group: true}, errors.Join(os.MkdirAll(path, 0o755), f.err)
}

func (f *fakeCSI) Unpublish(_ context.Context, v csi.Volume) error {
	f.called("unpublish " + v.Name + " " + string(v.Pod.UID))
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

// TestVolumesDoNotWaitForOneAnother: each is asked for before any is there, and each that fails
// has an event of its own, in the order of the spec.
func TestVolumesDoNotWaitForOneAnother(t *testing.T) {
	m, _, driver := csiManager(t)
	var list []corev1.Volume
	var all sync.WaitGroup
	for _, name := range []string{"z", "bad", "y", "worse"} {
		all.Add(1)
		list = append(list, vol(name, corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "d"}}))
	}
	pod := testPod(list...)
	driver.publish = func(ctx context.Context, v csi.Volume) error {
		all.Done()
		together := make(chan struct{})
		go func() { all.Wait(); close(together) }()
		select {
		case <-together:
		case <-ctx.Done():
			return ctx.Err()
		}
		if v.Name == "bad" || v.Name == "worse" {
			return errors.New("no " + v.Name)
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := m.Prepare(ctx, pod, PodInfo{})
	var events []string
	for reason, message := range Events(err) {
		events = append(events, reason+" "+message)
	}
	want := []string{`FailedMount MountVolume.SetUp failed for volume "bad" : no bad`, `FailedMount MountVolume.SetUp failed for volume "worse" : no worse`}
	if !slices.Equal(events, want) {
		t.Errorf("events %q, want %q", events, want)
	}
	driver.publish = nil
	prepare(t, m, pod, PodInfo{})
}

// TestOneClaimTwiceInAPod: two volumes of a pod that are the same claim are one directory.
func TestOneClaimTwiceInAPod(t *testing.T) {
	m, claims, _ := csiManager(t)
	claims.bind("data", csiSource)
	pod := testPod(claimVolume("a", "data"), claimVolume("b", "data"))
	got := prepare(t, m, pod, PodInfo{FSGroup: ptr(int64(4321))})
	if got["a"].Path == "" || got["a"].Path != got["b"].Path {
		t.Errorf("mounted %+v", got)
	}
	wantOwner(t, got["a"].Path, 4321, 0o770)
}
