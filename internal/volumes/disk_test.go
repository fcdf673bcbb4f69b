package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/mounts"
)

// disk is a loop device of 16 MiB that goes with the test.
func disk(t *testing.T) string {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("the host has no loop devices")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("the host has no mkfs.ext4")
	}
	file, err := os.CreateTemp(t.TempDir(), "disk")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(16 << 20); err != nil {
		t.Fatal(err)
	}
	for range 10 { // others take loop devices, too
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Fatal(err)
		}
		device := fmt.Sprintf("/dev/loop%d", n)
		if err := attachLoop(t, device, file); !errors.Is(err, unix.EBUSY) {
			if err != nil {
				t.Fatal(err)
			}
			return device
		}
	}
	t.Fatal("no loop device is free")
	return ""
}

func attachLoop(t *testing.T, device string, file *os.File) error {
	loop, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_FD, int(file.Fd())); err != nil {
		loop.Close()
		return err
	}
	t.Cleanup(func() {
		_ = unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0)
		loop.Close()
	})
	return nil
}

func TestDisksOfLocalVolumes(t *testing.T) {
	m, claims := claimsManager(t)
	device := disk(t)
	claims.bind("fs", local(device), func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
		pv.Spec.MountOptions, pv.Spec.Local.FSType = []string{"noatime"}, ptr("ext3")
	})
	claims.bind("raw", local(device), func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
		pv.Spec.VolumeMode = ptr(corev1.PersistentVolumeBlock)
	})
	raw := testPod(claimVolume("d", "raw"))
	raw.Spec.EphemeralContainers = nil
	raw.Spec.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: "d", DevicePath: "/dev/xvda"}}
	got := prepare(t, m, raw, PodInfo{})["d"]
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil || got.Device == nil || unix.Mkdev(got.Device.Major, got.Device.Minor) != st.Rdev {
		t.Errorf("device %+v, want %x (%v)", got.Device, st.Rdev, err)
	}
	if err := m.Remove(t.Context(), testUID); err != nil {
		t.Fatal(err)
	}

	pod := testPod(claimVolume("d", "fs"))
	other := testPod(claimVolume("d", "fs"))
	other.UID = "99999999-2222-3333-4444-555555555555"
	path := prepare(t, m, pod, PodInfo{FSGroup: ptr(int64(4321))})["d"].Path
	wantOwner(t, path, 4321, 0o770)
	if table, err := os.ReadFile("/proc/self/mountinfo"); err != nil || !regexp.MustCompile(regexp.QuoteMeta(path)+` rw,noatime (.* )?- ext3 `).Match(table) {
		t.Errorf("mounted otherwise: %v\n%s", err, table)
	}
	if err := os.WriteFile(filepath.Join(path, "kept"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again := prepare(t, m, other, PodInfo{})["d"].Path; again != path {
		t.Errorf("the second pod has it at %s, the first at %s", again, path)
	}
	if err := m.Remove(t.Context(), testUID); err != nil {
		t.Fatal(err)
	}
	wantMounted(t, path, true)
	if err := m.Remove(t.Context(), string(other.UID)); err != nil {
		t.Fatal(err)
	}
	wantMounted(t, path, false)
	path = prepare(t, m, pod, PodInfo{})["d"].Path
	wantFile(t, filepath.Join(path, "kept"), "x") // it was made a file system once
	if err := m.Remove(t.Context(), testUID); err != nil {
		t.Fatal(err)
	}
}

func wantMounted(t *testing.T, path string, want bool) {
	t.Helper()
	if mounted, err := mounts.IsMountPoint(path); err != nil || mounted != want {
		t.Errorf("%s is mounted: %v %v, want %v", path, mounted, err, want)
	}
}
