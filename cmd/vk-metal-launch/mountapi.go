//go:build linux

package main

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// newFS makes a file system and returns it as a detached mount. Options is
// comma-separated, as for mount(8), with what labelled adds at the end.
func newFS(kind, options string, attrs int) (int, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open file system %s: %w", kind, err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", kind); err != nil {
		return -1, fmt.Errorf("name file system %s: %w", kind, err)
	}
	options, label, _ := strings.Cut(options, contextOption)
	if label != "" {
		if err := unix.FsconfigSetString(fs, "context", label); err != nil {
			return -1, fmt.Errorf("label file system %s %q: %w", kind, label, err)
		}
	}
	for _, option := range strings.Split(options, ",") {
		if err := setOption(fs, option); err != nil {
			return -1, fmt.Errorf("set option %q of %s: %w", option, kind, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("create file system %s: %w", kind, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("mount file system %s: %w", kind, err)
	}
	return fd, nil
}

func setOption(fs int, option string) error {
	if option == "" {
		return nil
	}
	if key, value, ok := strings.Cut(option, "="); ok {
		return unix.FsconfigSetString(fs, key, value)
	}
	return unix.FsconfigSetFlag(fs, option)
}

// cloneTree returns a detached copy of the mount at fd (and of those below it).
func cloneTree(fd int, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.OpenTree(fd, "", flags)
}

// setAttr changes the flags and the propagation of a mount, given by any descriptor of its root.
func setAttr(fd int, recursive bool, set, propagation uint64) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(fd, "", flags, &unix.MountAttr{Attr_set: set, Propagation: propagation})
}

// mapIDs makes a detached mount show the IDs of a user namespace: what 0 owns on disk belongs
// to the namespace's 0 (mount_setattr(2), MOUNT_ATTR_IDMAP). Mounts below it that cannot show
// them keep the host's, which nobody in the namespace has.
func mapIDs(tree, userNS int, recursive bool) error {
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userNS)}
	if recursive && unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr) == nil {
		return nil
	}
	err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("map its IDs for hostUsers: false: the file system cannot be mounted ID-mapped on this kernel: %w", err)
	}
	if err != nil {
		return fmt.Errorf("map its IDs for hostUsers: false: %w", err)
	}
	return nil
}

// attach puts a detached mount on what target refers to.
func attach(mount, target int) error {
	return unix.MoveMount(mount, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}
