package logs

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watch is an inotify watch on one directory whose events mean only "look again". Where
// inotify cannot be had it says so every pollEvery.
type watch struct{ file *os.File }

// pollEvery stands in for inotify, whose instances are few per user; root's processes in
// all containers share root's.
const pollEvery = 20 * time.Millisecond

func newWatch(dir string, mask uint32) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if errors.Is(err, unix.EMFILE) {
		return &watch{}, nil
	}
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	if _, err := unix.InotifyAddWatch(fd, dir, mask|unix.IN_ONLYDIR); err != nil {
		_ = unix.Close(fd)
		return nil, &os.PathError{Op: "inotify_add_watch", Path: dir, Err: err}
	}
	return &watch{file: os.NewFile(uintptr(fd), "inotify")}, nil
}

// wait returns after something happened since the last wait, after atMost (0: for
// ever), or with ctx's error.
func (w *watch) wait(ctx context.Context, atMost time.Duration) error {
	if w.file == nil {
		return poll(ctx, atMost)
	}
	var deadline time.Time
	if atMost > 0 {
		deadline = time.Now().Add(atMost)
	}
	if err := w.file.SetReadDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = w.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var buf [4096]byte // more than one event; none is looked at
	_, err := w.file.Read(buf[:])
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// poll waits for a look without inotify.
func poll(ctx context.Context, atMost time.Duration) error {
	wait := pollEvery
	if atMost > 0 {
		wait = min(wait, atMost)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *watch) close() {
	if w.file != nil {
		_ = w.file.Close()
	}
}
