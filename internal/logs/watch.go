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
type watch struct {
	file *os.File
	mark int // what InotifyAddWatch returned
}

// pollEvery stands in for inotify, whose instances are few per user; root's processes in
// all containers share root's.
const pollEvery = 20 * time.Millisecond

// idle are inotify instances without watches. To close one takes some 10 ms: the kernel waits
// until nobody can see its watches any more (fsnotify_destroy_group). To remove a watch from one
// that stays takes no time.
var idle = make(chan *os.File, 8)

func newWatch(dir string, mask uint32) (*watch, error) {
	file, err := inotify()
	if errors.Is(err, unix.EMFILE) {
		return &watch{}, nil
	}
	if err != nil {
		return nil, err
	}
	w := &watch{file: file}
	err = w.control(func(fd int) (err error) {
		w.mark, err = unix.InotifyAddWatch(fd, dir, mask|unix.IN_ONLYDIR)
		return err
	})
	if err != nil {
		putBack(file)
		return nil, &os.PathError{Op: "inotify_add_watch", Path: dir, Err: err}
	}
	return w, nil
}

// inotify returns an instance without watches. It may have events left of earlier ones.
func inotify() (*os.File, error) {
	select {
	case file := <-idle:
		return file, nil
	default:
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	return os.NewFile(uintptr(fd), "inotify"), nil
}

func putBack(file *os.File) {
	select {
	case idle <- file:
	default:
		_ = file.Close()
	}
}

// control runs a function on the instance's descriptor, which stays in the runtime's poller.
func (w *watch) control(run func(fd int) error) error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = run(int(fd)) }); err != nil {
		return err
	}
	return failed
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

// close ends the watch. One whose directory is gone has ended already, and its number belongs
// to nobody: an instance gives numbers in ascending order.
func (w *watch) close() {
	if w.file == nil {
		return
	}
	_ = w.control(func(fd int) error {
		_, err := unix.InotifyRmWatch(fd, uint32(w.mark))
		return err
	})
	putBack(w.file)
	w.file = nil
}
