package volumes

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func hugePod(medium corev1.StorageMedium, sizes ...string) *corev1.Pod {
	pod := testPod(vol("pages", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: medium}}))
	pod.Spec.Containers[0].Resources.Limits = corev1.ResourceList{}
	for _, size := range sizes {
		pod.Spec.Containers[0].Resources.Limits[corev1.ResourceName(corev1.ResourceHugePagesPrefix+size)] = resource.MustParse(size)
	}
	return pod
}

func TestPageSize(t *testing.T) {
	for _, tc := range []struct {
		pod   *corev1.Pod
		size  int64
		error string
	}{
		{hugePod("HugePages", "2Mi"), 2 << 20, ""},
		{hugePod("HugePages-1Gi", "2Mi", "1Gi"), 1 << 30, ""},
		{hugePod("HugePages", "2Mi", "1Gi"), 0, "of one size, not of 2"},
		{hugePod("HugePages"), 0, "of one size, not of 0"},
		{hugePod("HugePages-1Gi", "2Mi"), 0, "no container asks for huge pages of 1Gi"},
		{hugePod("HugePages-huge", "2Mi"), 0, "names no size"},
	} {
		medium := tc.pod.Spec.Volumes[0].EmptyDir.Medium
		size, err := pageSize(tc.pod, medium)
		if size != tc.size || (err == nil) != (tc.error == "") || err != nil && !strings.Contains(err.Error(), tc.error) {
			t.Errorf("%s: %d, %v", medium, size, err)
		}
	}
}

// TestHugePagesVolume mounts one; that takes no page.
func TestHugePagesVolume(t *testing.T) {
	m, _ := testManager(t)
	pod := hugePod("HugePages", "2Mi")
	for range 2 {
		mounted, err := m.Prepare(t.Context(), pod, PodInfo{FSGroup: ptr(int64(1234))})
		if err != nil {
			t.Fatal(err)
		}
		var fs unix.Statfs_t
		var st unix.Stat_t
		dir := mounted["pages"].Path
		if err := unix.Statfs(dir, &fs); err != nil || fs.Type != unix.HUGETLBFS_MAGIC || fs.Bsize != 2<<20 {
			t.Errorf("type %x, block size %d, %v", fs.Type, fs.Bsize, err)
		}
		if err := unix.Stat(dir, &st); err != nil || st.Gid != 1234 || st.Mode&0o7777 != 0o2777 {
			t.Errorf("group %d, mode %o, %v", st.Gid, st.Mode&0o7777, err)
		}
	}
}
