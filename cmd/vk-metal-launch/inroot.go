//go:build linux

package main

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// rootDir resolves paths inside a directory as if it were "/": neither a symlink nor ".."
// nor a race leads out of it (openat2, RESOLVE_IN_ROOT).
type rootDir struct {
	fd   int
	null int // our own /dev/null, for masks; only where fd is the container's root
	// twins are the stand-ins that mimic made: writable until everything is mounted.
	twins *[]int
	// scratch is the directory that root is mounted in; empty where it is mounted nowhere yet.
	scratch string
}

// maxLinks is the kernel's limit of symlinks in one look-up.
const maxLinks = 40

// openat2 repeats a look-up that raced with a rename (EAGAIN), boundedly.
func openat2(dir int, name string, how unix.OpenHow) (int, error) {
	how.Flags |= unix.O_CLOEXEC
	for try := 0; ; try++ {
		fd, err := unix.Openat2(dir, name, &how)
		if (errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)) && try < 128 {
			continue
		}
		return fd, err
	}
}

func (r rootDir) open(name string, flags uint64) (int, error) {
	return openat2(r.fd, inside(name), unix.OpenHow{
		Flags: flags, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// openReal is open without following any symlink: for /proc, /sys and /dev, which an
// image must not redirect into a volume (CVE-2019-19921).
func (r rootDir) openReal(name string) (int, error) {
	return openat2(r.fd, inside(name), unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	})
}

// inside makes a path relative and keeps "." for the root itself.
func inside(name string) string {
	name = strings.TrimLeft(name, "/")
	if name == "" {
		return "."
	}
	return name
}

// mkdirAll makes a directory and what is missing above it, and opens it. A dangling
// symlink is followed: its target is made, inside the root.
func (r rootDir) mkdirAll(name string) (int, error) {
	return r.mkdirLinks(name, 0o755, 0)
}

func (r rootDir) mkdirLinks(name string, mode uint32, links int) (int, error) {
	if links > maxLinks {
		return -1, unix.ELOOP
	}
	fd, err := r.open(name, unix.O_PATH|unix.O_DIRECTORY)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	clean := inside(name)
	dir, base := path.Split(strings.TrimRight(clean, "/"))
	if base == "" || base == "." || base == ".." {
		return -1, unix.ENOENT
	}
	parent, err := r.mkdirLinks(dir, mode, links+1)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	err = unix.Mkdirat(parent, base, mode)
	if errors.Is(err, unix.EEXIST) {
		if target, ok := readLink(parent, base); ok {
			return r.mkdirLinks(joinLink(dir, target), mode, links+1)
		}
	} else if err != nil {
		return -1, err
	}
	return r.open(name, unix.O_PATH|unix.O_DIRECTORY)
}

// makeFile makes an empty file and what is missing above it, and opens it.
func (r rootDir) makeFile(name string) (int, error) { return r.makeFileLinks(name, 0) }

func (r rootDir) makeFileLinks(name string, links int) (int, error) {
	if links > maxLinks {
		return -1, unix.ELOOP
	}
	fd, err := r.open(name, unix.O_PATH)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	dir, base := path.Split(strings.TrimRight(inside(name), "/"))
	parent, err := r.mkdirAll(dir)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	made, err := unix.Openat(parent, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	switch {
	case err == nil:
		unix.Close(made)
	case errors.Is(err, unix.EEXIST):
		if target, ok := readLink(parent, base); ok {
			return r.makeFileLinks(joinLink(dir, target), links+1)
		}
	default:
		return -1, err
	}
	return r.open(name, unix.O_PATH)
}

func readLink(dir int, name string) (string, bool) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil || n == 0 {
		return "", false
	}
	return string(buf[:n]), true
}

// joinLink is where a link found in dir points. ".." is left to the kernel to resolve:
// cleaning it here would be wrong behind other symlinks.
func joinLink(dir, target string) string {
	if strings.HasPrefix(target, "/") {
		return target
	}
	return dir + "/" + target
}

// openBeneath opens a volume's sub-path: absolute symlinks and ".." that leave the
// volume are errors, whatever a container does to the directory meanwhile.
func openBeneath(dir int, name string) (int, error) {
	fd, err := openat2(dir, inside(name), unix.OpenHow{
		Flags: unix.O_PATH, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.EXDEV) {
		return -1, fmt.Errorf("%w: it leads out of the volume", err)
	}
	return fd, err
}
