//go:build linux

package sandbox

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// UsersSupported says why this host cannot give pods user namespaces, nil if it can: it makes
// one and mounts a tmpfs with its IDs, as the pod's secrets will be. That needs Linux 6.3.
func UsersSupported() error {
	return withNamespaces(firstID, func(pid int) error {
		users, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/user")
		if err != nil {
			return fmt.Errorf("open user namespace: %w", err)
		}
		defer users.Close()
		mount, err := newTmpfs()
		if err != nil {
			return fmt.Errorf("make tmpfs: %w", err)
		}
		defer unix.Close(mount)
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())}
		if err := unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, attr); err != nil {
			return fmt.Errorf("mount tmpfs ID-mapped (Linux 6.3 and later can): %w", err)
		}
		return nil
	})
}

func newTmpfs() (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
}
