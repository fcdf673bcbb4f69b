package volumes

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/vk-metal/vk-metal/internal/mounts"
)

// pagesOf says whether the medium is huge pages: HugePages, or HugePages-2Mi.
func pagesOf(medium corev1.StorageMedium) bool {
	return medium == corev1.StorageMediumHugePages || strings.HasPrefix(string(medium), string(corev1.StorageMediumHugePagesPrefix))
}

// hugetlbfs mounts a file system of huge pages. Their number is limited by the containers'
// cgroups, as with a kubelet.
func (v volume) hugetlbfs(dir string, src *corev1.EmptyDirVolumeSource) error {
	size, err := pageSize(v.pod, src.Medium)
	if err != nil {
		return err
	}
	mounted, err := mounts.IsMountPoint(dir)
	if err != nil || mounted {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	options := fmt.Sprintf("pagesize=%d,mode=777", size)
	if g := v.info.FSGroup; g != nil {
		options += fmt.Sprintf(",gid=%d", *g)
	}
	if err := unix.Mount("nodev", dir, "hugetlbfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount hugetlbfs at %s: %w", dir, err)
	}
	return v.openToPod(dir, 0o777)
}

// pageSize is what the medium names, or the only size that the pod asks for; bytes.
func pageSize(pod *corev1.Pod, medium corev1.StorageMedium) (int64, error) {
	asked := pageSizes(pod)
	if medium == corev1.StorageMediumHugePages {
		if len(asked) != 1 {
			return 0, fmt.Errorf("medium %q needs containers that ask for huge pages of one size, not of %d: name the size, as in HugePages-2Mi", medium, len(asked))
		}
		return asked[0], nil
	}
	size, err := resource.ParseQuantity(strings.TrimPrefix(string(medium), string(corev1.StorageMediumHugePagesPrefix)))
	if err != nil || size.Value() <= 0 {
		return 0, fmt.Errorf("medium %q names no size of pages such as HugePages-2Mi", medium)
	}
	if !slices.Contains(asked, size.Value()) {
		return 0, errors.New("no container asks for huge pages of " + size.String())
	}
	return size.Value(), nil
}

// pageSizes are the sizes that the pod's containers ask for, sorted.
func pageSizes(pod *corev1.Pod) []int64 {
	var sizes []int64
	add := func(list corev1.ResourceList) {
		for name := range list {
			text, ok := strings.CutPrefix(string(name), corev1.ResourceHugePagesPrefix)
			if size, err := resource.ParseQuantity(text); ok && err == nil && !slices.Contains(sizes, size.Value()) {
				sizes = append(sizes, size.Value())
			}
		}
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			add(list[i].Resources.Requests)
			add(list[i].Resources.Limits)
		}
	}
	if pod.Spec.Resources != nil {
		add(pod.Spec.Resources.Limits)
	}
	slices.Sort(sizes)
	return sizes
}
