package images

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// xattrOpaque marks a directory that hides those of the layers below.
const xattrOpaque = "trusted.overlay.opaque"

const paxXattr = "SCHILY.xattr."

// keepXattr says which extended attributes an image may bring: never trusted.* or *.overlay.*,
// which would speak to overlayfs (redirect, metacopy) in the image's name.
func keepXattr(name string) bool {
	switch {
	case strings.HasPrefix(name, "user.overlay."):
		return false
	case strings.HasPrefix(name, "user."):
		return true
	case name == "security.capability", name == "system.posix_acl_access", name == "system.posix_acl_default":
		return true
	}
	return false
}

func owner(hdr *tar.Header) (uid, gid int, err error) {
	for _, id := range []int{hdr.Uid, hdr.Gid} {
		if id < 0 || int64(id) >= math.MaxUint32 {
			return 0, 0, fmt.Errorf("owner %d:%d is out of range", hdr.Uid, hdr.Gid)
		}
	}
	return hdr.Uid, hdr.Gid, nil
}

// setMetaFd sets owner, then mode (chown clears setuid), then attributes (chown clears
// capabilities) of a file or directory.
func setMetaFd(fd int, hdr *tar.Header) error {
	uid, gid, err := owner(hdr)
	if err != nil {
		return err
	}
	if err := unix.Fchown(fd, uid, gid); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if err := unix.Fchmod(fd, uint32(hdr.Mode)&0o7777); err != nil { //nolint:gosec // masked
		return fmt.Errorf("set mode: %w", err)
	}
	return eachXattr(hdr, func(name string, value []byte) error { return unix.Fsetxattr(fd, name, value, 0) })
}

// setMetaAt does the same, and times, for what cannot be opened: symlinks and device nodes.
func setMetaAt(at place, hdr *tar.Header) error {
	uid, gid, err := owner(hdr)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(at.fd, at.base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if hdr.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(at.fd, at.base, uint32(hdr.Mode)&0o7777, 0); err != nil { //nolint:gosec // masked
			return fmt.Errorf("set mode: %w", err)
		}
	}
	err = eachXattr(hdr, func(name string, value []byte) error { return unix.Lsetxattr(at.procPath(), name, value, 0) })
	if err != nil {
		return err
	}
	ts := timespec(hdr.ModTime)
	return ignore(unix.UtimesNanoAt(at.fd, at.base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW), unix.EINVAL)
}

func eachXattr(hdr *tar.Header, set func(name string, value []byte) error) error {
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !keepXattr(name) {
			continue
		}
		err := set(name, []byte(value))
		if name != "security.capability" {
			// user.* is refused on symlinks and devices, ACLs on some file systems: not worth an image.
			err = ignore(err, unix.ENOTSUP, unix.EPERM)
		}
		if err != nil {
			return fmt.Errorf("set attribute %s: %w", name, err)
		}
	}
	return nil
}

func ignore(err error, errs ...error) error {
	for _, e := range errs {
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}

// timespec keeps a time within what every file system takes.
func timespec(t time.Time) unix.Timespec {
	if t.IsZero() || t.Unix() < 0 {
		return unix.Timespec{}
	}
	return unix.Timespec{Sec: min(t.Unix(), math.MaxInt32*4), Nsec: int64(t.Nanosecond())}
}

func setTimesFd(fd int, t time.Time) error {
	ts := timespec(t)
	path := fmt.Sprintf("/proc/self/fd/%d", fd)
	return ignore(unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, 0), unix.EINVAL)
}

// copyMetaFd copies owner, mode and attributes from one open file or directory to another.
func copyMetaFd(from, to int) (st unix.Stat_t, err error) {
	if err := unix.Fstat(from, &st); err != nil {
		return st, err
	}
	if err := unix.Fchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return st, err
	}
	if err := unix.Fchmod(to, st.Mode&0o7777); err != nil {
		return st, err
	}
	names, err := xattrNames(from)
	if err != nil {
		return st, err
	}
	for _, name := range names {
		if !keepXattr(name) {
			continue
		}
		value, err := xattr(from, name)
		if err != nil {
			return st, err
		}
		if err := unix.Fsetxattr(to, name, value, 0); err != nil {
			return st, fmt.Errorf("set attribute %s: %w", name, err)
		}
	}
	return st, nil
}

func xattrNames(fd int) ([]string, error) {
	n, err := unix.Flistxattr(fd, nil)
	if err != nil || n == 0 {
		return nil, ignore(err, unix.ENOTSUP)
	}
	buf := make([]byte, n)
	if n, err = unix.Flistxattr(fd, buf); err != nil {
		return nil, err
	}
	var names []string
	for name := range bytes.SplitSeq(buf[:n], []byte{0}) {
		if len(name) > 0 {
			names = append(names, string(name))
		}
	}
	return names, nil
}

func xattr(fd int, name string) ([]byte, error) {
	n, err := unix.Fgetxattr(fd, name, nil)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, n)
	n, err = unix.Fgetxattr(fd, name, buf)
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}
