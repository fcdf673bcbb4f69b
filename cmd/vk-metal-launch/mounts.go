//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// source is an opened bind source: a detached copy of its mounts (-1 for other kinds) and
// its real path on the host.
type source struct {
	tree int
	path string
	file bool // not a directory
	done bool // it has its attributes already
}

func openSources(spec *launchspec.Spec) ([]source, error) {
	sources := make([]source, len(spec.Mounts))
	for i, mount := range spec.Mounts {
		sources[i].tree = -1
		if mount.Kind != launchspec.MountBind {
			continue
		}
		var err error
		if sources[i], err = openBind(mount); err != nil {
			return nil, fmt.Errorf("open source of mount %s: %s: %w", mount.Target, describe(mount), err)
		}
	}
	return sources, nil
}

func describe(mount launchspec.Mount) string {
	if mount.SubPath != "" {
		return fmt.Sprintf("%s (sub-path %q)", mount.Source, mount.SubPath)
	}
	if mount.Source != "" {
		return mount.Source
	}
	return mount.Kind
}

// openBind copies the source's mounts while they are still peers of the host's, which
// Bidirectional needs, and then gives the copy the propagation asked for.
func openBind(mount launchspec.Mount) (source, error) {
	fd, err := unix.Open(mount.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return source{}, err
	}
	if mount.SubPath != "" {
		sub, err := openBeneath(fd, mount.SubPath)
		unix.Close(fd)
		if err != nil {
			return source{}, err
		}
		fd = sub
	}
	defer unix.Close(fd)
	src := source{}
	if src.path, err = os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)); err != nil {
		return source{}, fmt.Errorf("find its real path: %w", err)
	}
	propagation, err := propagationOf(mount.Propagation)
	if err != nil {
		return source{}, err
	}
	if src.file, err = isFile(fd); err != nil {
		return source{}, fmt.Errorf("find its type: %w", err)
	}
	if src.tree, err = cloneTree(fd, mount.Recursive); err != nil {
		return source{}, fmt.Errorf("copy mount: %w", err)
	}
	if propagation == 0 {
		return src, nil
	}
	if err := setAttr(src.tree, true, 0, propagation); err != nil {
		return source{}, fmt.Errorf("set propagation: %w", err)
	}
	return src, nil
}

// isFile says whether fd is anything but a directory: what a sub-path leads to is known
// only here.
func isFile(fd int) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return st.Mode&unix.S_IFMT != unix.S_IFDIR, err
}

func propagationOf(name string) (uint64, error) {
	switch name {
	case "", "private", "rprivate":
		return unix.MS_PRIVATE, nil
	case "rslave":
		return unix.MS_SLAVE, nil
	case "rshared":
		return 0, nil // stays the peer of the host's mount
	}
	return 0, fmt.Errorf("unknown propagation %q", name)
}

func mountAttrs(mount launchspec.Mount) uint64 {
	var attrs uint64
	for _, flag := range []struct {
		on   bool
		attr uint64
	}{
		{mount.Readonly, unix.MOUNT_ATTR_RDONLY},
		{mount.NoExec, unix.MOUNT_ATTR_NOEXEC},
		{mount.NoSuid, unix.MOUNT_ATTR_NOSUID},
		{mount.NoDev, unix.MOUNT_ATTR_NODEV},
	} {
		if flag.on {
			attrs |= flag.attr
		}
	}
	return attrs
}

// restrictTree sets the attributes that mount asks for on a copied tree.
func restrictTree(tree int, mount launchspec.Mount) error {
	attrs := mountAttrs(mount)
	if !mount.WritableBelow {
		return setAttr(tree, mount.Recursive, attrs, 0)
	}
	if all := attrs &^ unix.MOUNT_ATTR_RDONLY; all != 0 {
		if err := setAttr(tree, mount.Recursive, all, 0); err != nil {
			return err
		}
	}
	return setAttr(tree, false, attrs, 0)
}

func applyMount(root rootDir, mount launchspec.Mount, src source, label string) error {
	tree := src.tree
	attrs := mountAttrs(mount)
	var err error
	switch mount.Kind {
	case launchspec.MountBind, launchspec.MountImage:
		mount.File = src.file
		if attrs != 0 && !src.done {
			err = restrictTree(tree, mount)
		}
	case launchspec.MountCgroup:
		return mountCgroups(root, mount.Target, mount.Readonly)
	case launchspec.MountTmpfs, launchspec.MountDevpts:
		tree, err = newFS(mount.Kind, labelled(mount.Options, label), int(attrs))
	case launchspec.MountProc, launchspec.MountSysfs, launchspec.MountMqueue:
		tree, err = newFS(mount.Kind, mount.Options, int(attrs))
	default:
		err = fmt.Errorf("unknown kind %q", mount.Kind)
	}
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	target, err := makeTarget(root, mount)
	if err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	defer unix.Close(target)
	if err := attach(tree, target); err != nil || mount.Kind != launchspec.MountBind {
		return err
	}
	return hideNotifySocket(root, src.path, mount.Target)
}

// makeTarget opens the mount point inside the root, made if it is missing. Inside /proc
// nothing is mounted: masks there could be undone, and writes to it redirected.
func makeTarget(root rootDir, mount launchspec.Mount) (int, error) {
	if mount.Target == "" || inside(mount.Target) == "." {
		return -1, errors.New("the root itself cannot be a mount point")
	}
	makeIt := root.mkdirAll
	if mount.File {
		makeIt = root.makeFile
	}
	fd, err := makeIt(mount.Target)
	if errors.Is(err, unix.EROFS) {
		if err = root.mimic(mount.Target); err == nil {
			fd, err = makeIt(mount.Target)
		}
	}
	if err != nil {
		return -1, err
	}
	if isProc(fd) && mount.Kind != launchspec.MountProc && inside(mount.Target) != "proc" {
		unix.Close(fd)
		return -1, errors.New("it is inside /proc")
	}
	return fd, nil
}

func isProc(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}
