package volumes

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// dirGiven holds a file for each volume that the fsGroup was given since the server booted:
// what containers do with a volume afterwards is theirs.
const dirGiven = "given-to-group"

// giveToGroup applies fsGroup and its change policy to a volume, once for each pod and boot.
func (v volume) giveToGroup(path string) error {
	if v.info.FSGroup == nil {
		return nil
	}
	done := filepath.Join(v.m.memoryDir(string(v.pod.UID)), dirGiven, v.spec.Name)
	if _, err := os.Lstat(done); err == nil {
		return nil
	}
	if !v.onlyOnMismatch() || !belongsTo(path, *v.info.FSGroup) {
		if err := changeGroup(path, int(*v.info.FSGroup)); err != nil {
			return fmt.Errorf("applyFSGroup failed for vol %s: %w", v.spec.Name, err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(done), 0o700); err != nil {
		return err
	}
	return os.WriteFile(done, nil, 0o600)
}

func (v volume) onlyOnMismatch() bool {
	sc := v.pod.Spec.SecurityContext
	return sc != nil && sc.FSGroupChangePolicy != nil && *sc.FSGroupChangePolicy == corev1.FSGroupChangeOnRootMismatch
}

// What the group may do, in addition to what the modes say (pkg/volume/volume_linux.go).
const (
	groupFile = 0o660
	groupDir  = 0o770 | unix.S_ISGID
)

// belongsTo says whether the top of a volume looks as changeGroup leaves it.
func belongsTo(path string, group int64) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && int64(st.Gid) == group && st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mode&groupDir == groupDir
}

// changeGroup gives everything in the volume to the group. Another pod may be at work in it: no
// symlink is followed, and neither is a mount. The top comes last, so that it tells that all is done.
func changeGroup(path string, group int) error {
	top, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	dir := os.NewFile(uintptr(top), path)
	defer dir.Close()
	if err := changeBelow(dir, group); err != nil {
		return err
	}
	return changeOpen(dir, group)
}

func changeBelow(dir *os.File, group int) error {
	for {
		names, err := dir.Readdirnames(1000)
		for _, name := range names {
			if err := changeEntry(dir, name, group); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// changeEntry passes over what has gone meanwhile and what is not of this file system.
func changeEntry(dir *os.File, name string, group int) error {
	fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EXDEV) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	entry := os.NewFile(uintptr(fd), filepath.Join(dir.Name(), name))
	defer entry.Close()
	info, err := entry.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		if err := changeDir(dir, name, group); err != nil {
			return err
		}
	}
	return changeOpen(entry, group)
}

func changeDir(parent *os.File, name string, group int) error {
	child, err := openChild(int(parent.Fd()), name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // it is another file by now
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Join(parent.Name(), name), Err: err}
	}
	defer child.Close()
	return changeBelow(child, group)
}

// changeOpen changes group and mode of an open file; a symlink has no mode of its own.
func changeOpen(f *os.File, group int) error {
	fd := int(f.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	if int(st.Gid) != group {
		if err := unix.Fchownat(fd, "", -1, group, unix.AT_EMPTY_PATH); err != nil {
			return &os.PathError{Op: "chown", Path: f.Name(), Err: err}
		}
	}
	add := uint32(groupFile)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return nil
	case unix.S_IFDIR:
		add = groupDir
	}
	// The kernel takes set-user-ID away with chown: the mode of before is set again.
	if err := unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), st.Mode&0o7777|add); err != nil {
		return &os.PathError{Op: "chmod", Path: f.Name(), Err: err}
	}
	return nil
}
