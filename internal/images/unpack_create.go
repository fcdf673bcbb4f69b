package images

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// create writes the entry; what was in its place is gone, except for a directory.
func (u *unpacker) create(at place, hdr *tar.Header, body io.Reader) error {
	switch hdr.Typeflag {
	case tar.TypeDir:
		return u.createDir(at, hdr)
	case tar.TypeReg, tar.TypeRegA, tar.TypeGNUSparse: //nolint:staticcheck // old archives have TypeRegA
		return createFile(at, hdr, body)
	case tar.TypeLink:
		return u.createHardlink(at, hdr)
	case tar.TypeSymlink:
		return u.createSymlink(at, hdr)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return createNode(at, hdr)
	}
	return fmt.Errorf("unknown type %q", hdr.Typeflag)
}

func (u *unpacker) createDir(at place, hdr *tar.Header) error {
	if err := unix.Mkdirat(at.fd, at.base, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	fd, err := unix.Openat(at.fd, at.base, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	u.times[at.path()] = hdr.ModTime
	return setMetaFd(fd, hdr)
}

func createFile(at place, hdr *tar.Header, body io.Reader) error {
	fd, err := unix.Openat(at.fd, at.base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), at.base)
	defer f.Close()
	if _, err := io.Copy(f, body); err != nil {
		return err
	}
	if err := setMetaFd(fd, hdr); err != nil {
		return err
	}
	if err := setTimesFd(fd, hdr.ModTime); err != nil {
		return err
	}
	return f.Close()
}

// createHardlink links to an entry of this layer, or to a file of a layer below, which is then
// copied up first, as overlayfs would. The target is found without leaving the root.
func (u *unpacker) createHardlink(at place, hdr *tar.Header) error {
	name, err := cleanName(hdr.Linkname)
	if err != nil {
		return fmt.Errorf("link target: %w", err)
	}
	if name == "" {
		return errors.New("link target is the root")
	}
	dir, err := u.resolveDir(parentOf(name))
	if err != nil {
		return fmt.Errorf("link target %q: %w", hdr.Linkname, err)
	}
	target := path.Join(dir, path.Base(name))
	st, in, ok, err := u.stack.lookup(target)
	if err != nil || !ok {
		return errors.Join(fmt.Errorf("link target %q does not exist", hdr.Linkname), err)
	}
	if isDir(st) {
		return fmt.Errorf("link target %q is a directory", hdr.Linkname)
	}
	if target == at.path() {
		return fmt.Errorf("link to itself")
	}
	if in > 0 {
		if err := u.copyUp(target, in, st); err != nil {
			return fmt.Errorf("link target %q: %w", hdr.Linkname, err)
		}
	}
	fd, err := u.stack[0].openDir(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Linkat(fd, path.Base(target), at.fd, at.base, 0)
}

func (u *unpacker) createSymlink(at place, hdr *tar.Header) error {
	if len(hdr.Linkname) >= maxPathBytes {
		return fmt.Errorf("symlink target of %d bytes", len(hdr.Linkname))
	}
	clear(u.dirs)
	if err := unix.Symlinkat(hdr.Linkname, at.fd, at.base); err != nil {
		return err
	}
	return setMetaAt(at, hdr)
}

func createNode(at place, hdr *tar.Header) error {
	mode := uint32(unix.S_IFIFO)
	switch hdr.Typeflag {
	case tar.TypeChar:
		mode = unix.S_IFCHR
	case tar.TypeBlock:
		mode = unix.S_IFBLK
	}
	if hdr.Typeflag == tar.TypeChar && hdr.Devmajor == 0 && hdr.Devminor == 0 {
		return errors.New("character device 0:0 would be taken for a whiteout")
	}
	if hdr.Devmajor < 0 || hdr.Devmajor > 0xfff || hdr.Devminor < 0 || hdr.Devminor > 0xfffff {
		return fmt.Errorf("device number %d:%d", hdr.Devmajor, hdr.Devminor)
	}
	dev := unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)) //nolint:gosec // checked above
	if err := unix.Mknodat(at.fd, at.base, mode, int(dev)); err != nil {
		return err
	}
	return setMetaAt(at, hdr)
}
