// Package diskuse measures the space that a tree takes, whoever made it: paths of any length,
// links and changes meanwhile do no harm. Where a file system counts by project it is asked,
// else the tree is walked. It must not know whose tree it is.
package diskuse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Tree returns the bytes that the files below dir take on disk, hard links counted once
// and other file systems not at all. Once they are more than enough, what is known so far is the
// answer; negative means that all are to be counted. What is not there takes nothing.
func Tree(ctx context.Context, dir string, enough int64) (int64, error) {
	used, err := measure(ctx, dir, enough)
	return used.Bytes, err
}

// Usage is what a tree takes.
type Usage struct{ Bytes, Inodes int64 }

// Add sums two trees that share nothing.
func (u Usage) Add(o Usage) Usage { return Usage{u.Bytes + o.Bytes, u.Inodes + o.Inodes} }

// Measure returns all that the tree takes, as Tree does, with its inodes.
func Measure(ctx context.Context, dir string) (Usage, error) { return measure(ctx, dir, -1) }

func measure(ctx context.Context, dir string, enough int64) (Usage, error) {
	if used, ok := tracked(ctx, dir); ok {
		return used, nil
	}
	return walked(ctx, dir, enough)
}

func walked(ctx context.Context, dir string, enough int64) (Usage, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return Usage{}, nil
	}
	if err != nil {
		return Usage{}, fmt.Errorf("measure %s: %w", dir, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Usage{}, errors.Join(fmt.Errorf("measure %s: %w", dir, err), unix.Close(fd))
	}
	w := &walk{ctx: ctx, dev: st.Dev, enough: enough, seen: map[uint64]bool{}, total: Usage{st.Blocks * blockSize, 1}}
	if err := w.below(fd, 0); err != nil && !errors.Is(err, errEnough) {
		return w.total, fmt.Errorf("measure %s: %w", dir, err)
	}
	return w.total, nil
}

const (
	blockSize = 512 // of st_blocks, whatever the file system's is
	batch     = 256
	// maxDepth bounds open directories; a tree that is deeper is not measured below.
	maxDepth = 4096
)

var errEnough = errors.New("enough")

type walk struct {
	ctx    context.Context
	dev    uint64
	enough int64
	seen   map[uint64]bool // inodes with more than one name
	total  Usage
}

// below adds what a directory holds and closes it. Each step is relative to an open
// directory: nothing is ever looked up by a path.
func (w *walk) below(fd, depth int) error {
	dir := os.NewFile(uintptr(fd), "directory")
	defer dir.Close()
	for {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		names, err := dir.Readdirnames(batch)
		for _, name := range names {
			if err := w.entry(int(dir.Fd()), name, depth); err != nil {
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

func (w *walk) entry(parent int, name string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Dev != w.dev {
		return nil //nolint:nilerr // gone meanwhile
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		if w.seen[st.Ino] {
			return nil
		}
		w.seen[st.Ino] = true
	}
	w.total = w.total.Add(Usage{st.Blocks * blockSize, 1})
	if w.enough >= 0 && w.total.Bytes > w.enough {
		return errEnough
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || depth >= maxDepth {
		return nil
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil //nolint:nilerr // gone meanwhile
	}
	return w.below(fd, depth+1)
}
