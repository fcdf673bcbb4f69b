//go:build linux

package main

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// restrictPaths hides MaskedPaths and write-protects ReadonlyPaths. Missing ones are skipped.
func restrictPaths(root rootDir, spec *launchspec.Spec) error {
	for _, name := range spec.ReadonlyPaths {
		if err := protect(root, name); err != nil {
			return fmt.Errorf("make %s read-only: %w", name, err)
		}
	}
	for _, name := range spec.MaskedPaths {
		if err := mask(root, name); err != nil {
			return fmt.Errorf("mask %s: %w", name, err)
		}
	}
	return nil
}

func missing(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) }

func protect(root rootDir, name string) error {
	fd, err := root.open(name, unix.O_PATH)
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	tree, err := cloneTree(fd, true)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := setAttr(tree, true, unix.MOUNT_ATTR_RDONLY, 0); err != nil {
		return err
	}
	return attach(tree, fd)
}

// mask covers a directory with an empty read-only tmpfs and anything else with a null
// device that we make ourselves: the image's /dev/null could be something else
// (CVE-2025-31133).
func mask(root rootDir, name string) error {
	fd, err := root.open(name, unix.O_PATH)
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return root.maskFD(fd)
}

func (root rootDir) maskFD(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return coverDir(fd)
	}
	return coverFile(root.null, fd)
}

func coverDir(fd int) error {
	empty, err := newFS("tmpfs", "mode=755,size=4k,nr_inodes=2", kernelAttrs|unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(empty)
	return attach(empty, fd)
}

// coverFile puts a null device on a file. It comes from the /dev that we made, held since
// before any volume could cover it.
func coverFile(null, fd int) error {
	tree, err := cloneTree(null, false)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return attach(tree, fd)
}
