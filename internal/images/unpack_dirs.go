package images

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxLinks is the kernel's own bound for symlinks in one lookup.
const maxLinks = 40

// resolveDir finds the directory that a name means in the merged view, following symlinks of
// this and lower layers inside the root, and makes it in this layer. Missing parents get 0755,
// those of lower layers keep their owner, mode and attributes. The result has no symlink in it.
func (u *unpacker) resolveDir(name string) (string, error) {
	if dir, ok := u.dirs[name]; ok {
		return dir, nil
	}
	rest := splitPath(name)
	cur, links := "", 0
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		if part == ".." {
			cur = parentOf(cur)
			continue
		}
		next := path.Join(cur, part)
		target, err := u.enter(next)
		if err != nil {
			return "", err
		}
		if target == "" {
			cur = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("too many symlinks in %q", name)
		}
		if strings.HasPrefix(target, "/") {
			cur = ""
		}
		rest = slices.Concat(splitPath(target), rest)
	}
	u.dirs[name] = cur
	return cur, nil
}

func splitPath(p string) []string {
	return slices.DeleteFunc(strings.Split(p, "/"), func(s string) bool { return s == "" || s == "." })
}

// enter makes sure that p is a directory of this layer, or returns the symlink that stands there.
func (u *unpacker) enter(p string) (symlink string, err error) {
	st, in, ok, err := u.stack.lookup(p)
	switch {
	case err != nil:
		return "", err
	case !ok:
		return "", u.makeDir(p)
	case isSymlink(st):
		target, err := u.stack[in].readlink(p)
		if err == nil && target == "" {
			err = errors.New("empty symlink")
		}
		return target, err
	case !isDir(st):
		return "", fmt.Errorf("%q is not a directory", p)
	case in == 0:
		return "", nil
	}
	if err := u.makeDir(p); err != nil {
		return "", err
	}
	return "", u.copyMeta(p, in)
}

func (u *unpacker) makeDir(p string) error {
	fd, err := u.stack[0].openDir(parentOf(p))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	at := place{fd: fd, dir: parentOf(p), base: path.Base(p)}
	if st, err := u.stack[0].lstat(p); err == nil && isWhiteout(st) {
		if err := unix.Unlinkat(fd, at.base, 0); err != nil {
			return err
		}
		return u.mkdirOpaque(at)
	}
	if err := unix.Mkdirat(fd, at.base, 0o755); err != nil {
		return err
	}
	return unix.Fchmodat(fd, at.base, 0o755, 0)
}

// copyMeta gives a directory of this layer the owner, mode, attributes and times of a lower one.
func (u *unpacker) copyMeta(p string, in int) error {
	from, err := u.stack[in].openDir(p)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, err := u.stack[0].openDir(p)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	st, err := copyMetaFd(from, to)
	if err != nil {
		return err
	}
	u.times[p] = time.Unix(st.Mtim.Unix())
	return nil
}

// copyUp copies a file of a lower layer into this one.
func (u *unpacker) copyUp(p string, in int, st unix.Stat_t) error {
	if !isRegular(st) {
		return errors.New("only files of lower layers can be linked to")
	}
	if st.Size > u.limits.LayerBytes-u.bytes {
		return fmt.Errorf("layer unpacks to more than the limit of %d bytes", u.limits.LayerBytes)
	}
	u.bytes += st.Size
	src, err := u.stack[in].open(p, unix.O_RDONLY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	from := os.NewFile(uintptr(src), p)
	defer from.Close()
	dir, err := u.stack[0].openDir(parentOf(p))
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	dst, err := unix.Openat(dir, path.Base(p), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	to := os.NewFile(uintptr(dst), p)
	defer to.Close()
	if _, err := io.Copy(to, from); err != nil {
		return err
	}
	if _, err := copyMetaFd(src, dst); err != nil {
		return err
	}
	return setTimesFd(dst, time.Unix(st.Mtim.Unix()))
}

// whiteout turns .wh.name into a 0:0 character device and .wh..wh..opq into the opaque mark.
// Both speak of the layers below only: what this layer has under the name stays.
func (u *unpacker) whiteout(at place) error {
	if at.base == ".wh..wh..opq" {
		return unix.Fsetxattr(at.fd, xattrOpaque, []byte("y"), 0)
	}
	at.base = strings.TrimPrefix(at.base, whiteoutPrefix)
	if strings.HasPrefix(at.base, whiteoutPrefix) {
		return nil // aufs's own marks (.wh..wh.plnk, .wh..wh.aufs)
	}
	if at.base == "" || at.base == "." || at.base == ".." {
		return errors.New("whiteout of no name")
	}
	var st unix.Stat_t
	err := unix.Fstatat(at.fd, at.base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		if isDir(st) {
			return unix.Lsetxattr(at.procPath(), xattrOpaque, []byte("y"), 0)
		}
		return nil
	}
	if _, _, below, err := u.stack[1:].lookup(at.path()); err != nil || !below {
		return err
	}
	clear(u.dirs)
	return unix.Mknodat(at.fd, at.base, unix.S_IFCHR, 0)
}

// setTimes sets the directories' times, deepest first for no reason but a stable order.
func (u *unpacker) setTimes() error {
	for p, t := range u.times {
		fd, err := u.stack[0].openDir(p)
		if err != nil {
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
				continue // replaced by a later entry
			}
			return err
		}
		err = setTimesFd(fd, t)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}
