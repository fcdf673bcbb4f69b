package volumes

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/mounts"
)

// maxOpenDirs is how deep a removal descends before it moves what is left to the top: a
// container may nest directories as deep as it likes, file descriptors are few.
const maxOpenDirs = 64

// stay resolves one name without leaving the file system or following a link.
const stay = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// removeTree removes path and all below it. It follows no symlink and enters no mount: a mount
// that is there makes it fail. A missing path is success.
func removeTree(path string) error {
	err := removeAt(path)
	if err == nil {
		return nil
	}
	if still, listErr := mounts.Below(path); listErr == nil && len(still) > 0 {
		return fmt.Errorf("remove %s: still mounted: %q: %w", path, still, err)
	}
	return fmt.Errorf("remove %s: %w", path, err)
}

func removeAt(path string) error {
	parent, err := unix.Open(filepath.Dir(path), unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	name := filepath.Base(path)
	if done, err := unlink(parent, name); done {
		return err
	}
	top, err := openChild(parent, name)
	if err != nil {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer top.Close()
	r := &remover{top: int(top.Fd())}
	for r.again = true; r.again; {
		r.again = false
		if err := r.empty(top, 0); err != nil {
			return err
		}
	}
	return rmdir(parent, name)
}

// remover empties the directory top, which also takes what lies too deep to reach.
type remover struct {
	top   int
	moved int
	again bool // something was moved to the top
}

// unlink removes name unless it is a directory with something in it.
func unlink(dir int, name string) (done bool, err error) {
	err = unix.Unlinkat(dir, name, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return true, nil
	case !errors.Is(err, unix.EISDIR):
		return true, &fs.PathError{Op: "unlink", Path: name, Err: err}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR) == nil, nil
}

func rmdir(dir int, name string) error {
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: name, Err: err}
	}
	return nil
}

func openChild(dir int, name string) (*os.File, error) {
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags: unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_RDONLY | unix.O_CLOEXEC, Resolve: stay,
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// empty deletes everything in dir.
func (r *remover) empty(dir *os.File, depth int) error {
	for {
		names, err := dir.Readdirnames(1000)
		for _, name := range names {
			if err := r.remove(int(dir.Fd()), name, depth+1); err != nil {
				return err
			}
		}
		if len(names) == 0 {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		// What was deleted may have shifted what was not yet read.
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
}

// remove deletes name and all below it, or moves it to the top for later.
func (r *remover) remove(dir int, name string, depth int) error {
	if done, err := unlink(dir, name); done {
		return err
	}
	if depth >= maxOpenDirs {
		return r.moveUp(dir, name)
	}
	child, err := openChild(dir, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer child.Close()
	if err := r.empty(child, depth); err != nil {
		return err
	}
	return rmdir(dir, name)
}

func (r *remover) moveUp(dir int, name string) error {
	for {
		r.moved++
		r.again = true
		err := unix.Renameat2(dir, name, r.top, fmt.Sprintf(".deep-%d", r.moved), unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "rename", Path: name, Err: err}
		}
		return nil
	}
}
