package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/mounts"
)

// unmountMemory unmounts the pod's own tmpfs mounts, and nothing else that may be mounted there.
func (m *Manager) unmountMemory(uid string) error {
	dir := filepath.Join(m.memoryDir(uid), dirEmpty)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, unmountOurs(filepath.Join(dir, e.Name())))
	}
	return errors.Join(errs...)
}

// unmountOurs takes a tmpfs, or a file system of huge pages, away even from under processes that still use it.
func unmountOurs(path string) error {
	for {
		mounted, err := mounts.IsMountPoint(path)
		if err != nil || !mounted {
			return err
		}
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err != nil || st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC && st.Type != unix.HUGETLBFS_MAGIC {
			return errors.Join(err, fmt.Errorf("unmount %s: not a file system of ours", path))
		}
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}
