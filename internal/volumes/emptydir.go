package volumes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/vk-metal/vk-metal/internal/diskuse"
	"github.com/vk-metal/vk-metal/internal/mounts"
)

// emptyDir makes the directory once; what is in it is the containers'.
func (v volume) emptyDir(src *corev1.EmptyDirVolumeSource) (Mounted, error) {
	var err error
	dir := v.emptyDirPath(src)
	switch src.Medium {
	case corev1.StorageMediumDefault:
		err = v.plainDir(dir)
	case corev1.StorageMediumMemory:
		err = v.tmpfs(dir, src)
	default:
		if pagesOf(src.Medium) {
			err = v.hugetlbfs(dir, src)
			break
		}
		return Mounted{}, v.fail("emptyDir.medium", fmt.Errorf("storage medium %q is not supported by this node", src.Medium))
	}
	if err != nil {
		return Mounted{}, v.fail("emptyDir", err)
	}
	return Mounted{Path: dir, Relabel: true}, nil
}

// emptyDirPath is where the volume is: on a tmpfs for the media that are memory.
func (v volume) emptyDirPath(src *corev1.EmptyDirVolumeSource) string {
	root := v.m.memoryDir(string(v.pod.UID))
	if src.Medium == corev1.StorageMediumDefault {
		root = v.m.diskDir(string(v.pod.UID))
	}
	return filepath.Join(root, dirEmpty, v.spec.Name)
}

// plainDir makes a directory under another name and renames it: one that is there is complete.
func (v volume) plainDir(dir string) error {
	if st, err := os.Lstat(dir); err == nil {
		if !st.IsDir() {
			return fmt.Errorf("%s is not a directory", dir)
		}
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(dir), ".new-"+v.spec.Name[:min(len(v.spec.Name), 200)])
	if err := removeTree(tmp); err != nil {
		return err
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	v.count(tmp)
	if err := v.openToPod(tmp, 0o777); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// count has the file system count what the directory takes, if it can: for pods with a user
// namespace, whose processes cannot keep files from being counted (a kubelet does the same).
// Others' are walked.
func (v volume) count(dir string) {
	if own := v.pod.Spec.HostUsers; own == nil || *own {
		return
	}
	if err := diskuse.Track(dir); err != nil && !errors.Is(err, diskuse.ErrNoQuota) {
		v.m.log.Warn("Volume is not counted by its file system", "uid", string(v.pod.UID), "volume", v.spec.Name, "err", err)
	}
}

// openToPod sets the kubelet's mode for volumes and gives the fsGroup its share.
func (v volume) openToPod(dir string, mode uint32) error {
	if g := v.info.FSGroup; g != nil {
		if err := os.Lchown(dir, 0, int(*g)); err != nil {
			return err
		}
		mode |= unix.S_ISGID | 0o770
	}
	return unix.Chmod(dir, mode)
}

// tmpfs mounts one tmpfs for the volume. Without fsGroup it is 01777, the kernel's default, as
// with a kubelet.
func (v volume) tmpfs(dir string, src *corev1.EmptyDirVolumeSource) error {
	mounted, err := mounts.IsMountPoint(dir)
	if err != nil || mounted {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	options := []string{"mode=1777"}
	if g := v.info.FSGroup; g != nil {
		options = []string{"mode=3777", fmt.Sprintf("gid=%d", *g)}
	}
	if size := v.memoryLimit(src); size > 0 {
		options = append(options, fmt.Sprintf("size=%d", size))
	}
	return mountTmpfs(dir, strings.Join(options, ","))
}

// memoryLimit is the least of sizeLimit, the pod's memory limit and what the node can give; 0
// means that nothing is known.
func (v volume) memoryLimit(src *corev1.EmptyDirVolumeSource) int64 {
	var limit int64
	consider := func(q *resource.Quantity) {
		if q != nil && q.Value() > 0 && (limit == 0 || q.Value() < limit) {
			limit = q.Value()
		}
	}
	allocatable := v.m.opts.NodeAllocatable()
	consider(allocatable.Memory())
	if everyContainerLimited(v.pod) {
		limits := resourcehelper.PodLimits(v.pod, resourcehelper.PodResourcesOptions{})
		consider(limits.Memory())
	}
	consider(src.SizeLimit)
	return limit
}

// everyContainerLimited says whether the pod as a whole has a memory limit.
func everyContainerLimited(pod *corev1.Pod) bool {
	if pod.Spec.Resources != nil && !pod.Spec.Resources.Limits.Memory().IsZero() {
		return true
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Resources.Limits.Memory().IsZero() {
				return false
			}
		}
	}
	return true
}

// mountTmpfs mounts a tmpfs that never goes to swap where the kernel can do that (6.4).
func mountTmpfs(dir, options string) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	err := unix.Mount("tmpfs", dir, "tmpfs", flags, options+",noswap")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("tmpfs", dir, "tmpfs", flags, options)
	}
	if err != nil {
		return fmt.Errorf("mount tmpfs at %s: %w", dir, err)
	}
	return nil
}
