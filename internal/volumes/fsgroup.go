package volumes

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/walk"
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

// changeGroup gives everything in the volume to the group. Another pod may be at work in it. The top
// comes last, so that it tells that all is done.
func changeGroup(path string, group int) error {
	return walk.Bottom(path, func(f *os.File) error { return changeOpen(f, group) })
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
