package images

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// tree is the root directory of one layer. Every path is relative, clean, and resolved by the
// kernel beneath the root without following any symlink.
type tree struct{ fd int }

func openTree(dir string) (tree, error) {
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return tree{}, fmt.Errorf("open layer %s: %w", dir, err)
	}
	return tree{fd: fd}, nil
}

func (t tree) close() { unix.Close(t.fd) }

const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

func (t tree) open(p string, flags uint64) (int, error) {
	setDefault(&p, ".")
	for {
		fd, err := unix.Openat2(t.fd, p, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: beneath})
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

func (t tree) openDir(p string) (int, error) {
	return t.open(p, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_NOFOLLOW)
}

func (t tree) lstat(p string) (st unix.Stat_t, err error) {
	fd, err := t.open(p, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return st, err
	}
	defer unix.Close(fd)
	return st, unix.Fstat(fd, &st)
}

func (t tree) readlink(p string) (string, error) {
	fd, err := t.open(p, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, maxPathBytes)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// opaque says whether the directory hides those of the layers below.
func (t tree) opaque(p string) bool {
	fd, err := t.openDir(p)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var buf [1]byte
	n, err := unix.Fgetxattr(fd, xattrOpaque, buf[:])
	return err == nil && n == 1 && buf[0] == 'y'
}

func isDir(st unix.Stat_t) bool      { return st.Mode&unix.S_IFMT == unix.S_IFDIR }
func isSymlink(st unix.Stat_t) bool  { return st.Mode&unix.S_IFMT == unix.S_IFLNK }
func isRegular(st unix.Stat_t) bool  { return st.Mode&unix.S_IFMT == unix.S_IFREG }
func isWhiteout(st unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

// stack is layers as overlayfs stacks them, topmost first. stack[0] is the one being made.
type stack []tree

// lookup finds what the merged view has at p, and in which layer.
func (s stack) lookup(p string) (st unix.Stat_t, in int, ok bool, err error) {
	for i, t := range s {
		st, err = t.lstat(p)
		switch {
		case err == nil:
			return st, i, !isWhiteout(st), nil
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			return st, 0, false, nil // something that is no directory hides what lies below
		case !errors.Is(err, unix.ENOENT):
			return st, 0, false, err
		case t.hides(p):
			return st, 0, false, nil
		}
	}
	return st, 0, false, nil
}

// hides says whether an opaque directory above p in this layer hides p in lower layers.
func (t tree) hides(p string) bool {
	for dir := parentOf(p); ; dir = parentOf(dir) {
		if t.opaque(dir) {
			return true
		}
		if dir == "" {
			return false
		}
	}
}

// parentOf is path.Dir with "" for the root.
func parentOf(p string) string {
	dir := path.Dir(p)
	if dir == "." || dir == "/" {
		return ""
	}
	return dir
}

// cleanName turns an entry's name into a relative clean path ("" is the root). A name that
// leaves the root is an error; a leading slash is not, as with other runtimes.
func cleanName(name string) (string, error) {
	if len(name) > maxPathBytes {
		return "", fmt.Errorf("entry name of %d bytes is longer than %d", len(name), maxPathBytes)
	}
	if strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("entry name %q holds a NUL", name)
	}
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", fmt.Errorf("entry name %q leaves the root", name)
	}
	if clean == "." {
		return "", nil
	}
	return clean, nil
}
