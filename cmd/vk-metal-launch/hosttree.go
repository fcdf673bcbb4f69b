//go:build linux

package main

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// hostTree is a copy of the mounts of a directory that is itself the root. Later mounts
// and unmounts of the host are seen (slave), so that no disk is pinned.
type hostTree struct {
	tree int
	// entries replace tree where a read-only root lacks a directory at its top that the
	// container needs: nothing can be mounted on the root itself.
	entries []mimicked
}

// openHostRoot returns nil for a root that is made of layers.
func openHostRoot(spec *launchspec.Spec) (*hostTree, error) {
	root := spec.Root
	if root.HostPath == "" {
		return nil, nil
	}
	dir, err := unix.Open(root.HostPath, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root %s: %w", root.HostPath, err)
	}
	defer unix.Close(dir)
	lacks, err := lacksTop(dir, spec)
	if err != nil {
		return nil, fmt.Errorf("look into root %s: %w", root.HostPath, err)
	}
	host := &hostTree{tree: -1}
	if root.Readonly && lacks {
		err = host.copyTop(dir)
	} else if host.tree, err = cloneTree(dir, true); err == nil {
		err = detach(host.tree, root.Readonly)
	}
	if err != nil {
		return nil, fmt.Errorf("copy mounts of root %s: %w", root.HostPath, err)
	}
	return host, nil
}

// lacksTop says whether the root has no entry for the first element of a path at which
// something will be mounted or made.
func lacksTop(dir int, spec *launchspec.Spec) (bool, error) {
	targets := []string{"/proc", "/dev", "/sys", spec.Dir}
	for _, mount := range spec.Mounts {
		targets = append(targets, mount.Target)
	}
	for _, target := range targets {
		top, _, _ := strings.Cut(strings.TrimPrefix(path.Clean("/"+target), "/"), "/")
		if top == "" {
			continue
		}
		var st unix.Stat_t
		err := unix.Fstatat(dir, top, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

func (h *hostTree) copyTop(dir int) error {
	names, err := listDir(dir)
	if err != nil {
		return err
	}
	if len(names) > maxMimic {
		return fmt.Errorf("it has %d entries, too many to make a mount point beside them", len(names))
	}
	if h.entries, err = copyEntries(dir, names); err != nil {
		return err
	}
	for _, entry := range h.entries {
		if entry.tree < 0 {
			continue
		}
		if err := detach(entry.tree, true); err != nil {
			return err
		}
	}
	return nil
}

// detach makes a copy of the host's mounts a slave of them.
func detach(tree int, readonly bool) error {
	if err := setAttr(tree, true, 0, unix.MS_SLAVE); err != nil {
		return fmt.Errorf("detach from the host: %w", err)
	}
	if !readonly {
		return nil
	}
	if err := setAttr(tree, true, unix.MOUNT_ATTR_RDONLY, 0); err != nil {
		return fmt.Errorf("make read-only: %w", err)
	}
	return nil
}

func (h *hostTree) attach(target int, twins *[]int) error {
	if h.tree >= 0 {
		return attach(h.tree, target)
	}
	return attachTwin(target, "/", h.entries, twins)
}
