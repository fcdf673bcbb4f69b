//go:build linux

// Package walk visits what is in a directory that others may be changing meanwhile. No symlink is
// followed, and no mount is entered. It must not know what is done with the files.
package walk

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Bottom calls visit for everything in path, and for path itself last: how that looks tells whether
// all is done. What visit gets is open as if by O_PATH, or for reading; its name is for errors only.
// What goes away meanwhile is passed over.
func Bottom(path string, visit func(*os.File) error) error {
	top, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	dir := os.NewFile(uintptr(top), path)
	defer dir.Close()
	if err := below(dir, visit); err != nil {
		return err
	}
	return visit(dir)
}

func below(dir *os.File, visit func(*os.File) error) error {
	for {
		names, err := dir.Readdirnames(1000)
		for _, name := range names {
			if err := entry(dir, name, visit); err != nil {
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

// entry passes over what has gone meanwhile and what is not of this file system.
func entry(dir *os.File, name string, visit func(*os.File) error) error {
	fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: stay})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EXDEV) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	file := os.NewFile(uintptr(fd), filepath.Join(dir.Name(), name))
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		if err := child(dir, name, visit); err != nil {
			return err
		}
	}
	return visit(file)
}

const stay = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV

func child(parent *os.File, name string, visit func(*os.File) error) error {
	path := filepath.Join(parent.Name(), name)
	fd, err := unix.Openat2(int(parent.Fd()), name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: stay})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // it is another file by now
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	return below(dir, visit)
}
