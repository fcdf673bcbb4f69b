package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

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

// enlarge doubles the file of a disk, and lets the device know.
func enlarge(t *testing.T, device string) {
	t.Helper()
	name, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(strings.TrimSpace(string(name)), 32<<20); err != nil {
		t.Fatal(err)
	}
	loop, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		t.Fatal(err)
	}
}

// TestLocalVolumesGrow: the node grows the file system of a disk when the claim says so, and tells
// it; a directory is as large as it is.
func TestLocalVolumesGrow(t *testing.T) {
	m, claims := claimsManager(t)
	device := disk(t)
	small := func(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
		claim.Namespace = "shop"
		claim.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("16Mi")}
		pv.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("32Mi")}
	}
	claims.bind("disk", local(device), small)
	claims.bind("dir", local(t.TempDir()), small)
	got := prepare(t, m, testPod(claimVolume("a", "disk"), claimVolume("b", "dir")), PodInfo{})
	size := func() uint64 {
		t.Helper()
		var st unix.Statfs_t
		if err := unix.Statfs(got["a"].Path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * uint64(st.Frsize)
	}
	before := size()
	enlarge(t, device)
	m.growAll(t.Context())
	if after := size(); after != before {
		t.Errorf("it grew from %d to %d although its claim did not", before, after)
	}
	for _, name := range []string{"disk", "dir"} {
		claims.claims["shop/"+name].Status.AllocatedResourceStatuses = map[corev1.ResourceName]corev1.ClaimResourceStatus{
			corev1.ResourceStorage: corev1.PersistentVolumeClaimNodeResizePending,
		}
	}
	wants := map[string]string{"dir": "32Mi", "disk": "32Mi"}
	err := m.grow(t.Context(), claims.pvs["pv-disk"])
	if !mayResize(t) { // then the kernel refuses, and the claim is not told otherwise
		wants["disk"] = "16Mi"
		if err == nil || !strings.Contains(err.Error(), device) {
			t.Errorf("without the capability: %v", err)
		}
	} else if after := size(); err != nil || after < before*3/2 {
		t.Errorf("it grew from %d to %d: %v", before, after, err)
	}
	for range 2 {
		m.growAll(t.Context())
	}
	for name, want := range wants {
		status := claims.claims["shop/"+name].Status
		if got := status.Capacity.Storage().String(); got != want || (len(status.AllocatedResourceStatuses) > 0) != (want == "16Mi") {
			t.Errorf("the claim %s is %+v, want %s", name, status, want)
		}
	}
	m.removed(t)
}

// mayResize says whether ext4 lets us grow what is mounted: that takes CAP_SYS_RESOURCE, which
// containers may lack.
func mayResize(t *testing.T) bool {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
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
