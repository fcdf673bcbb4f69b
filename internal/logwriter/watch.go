package logwriter

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/logs/logstream"
)

// lookEvery is how often the directory is read where it cannot be watched: inotify
// instances are few per user (fs.inotify.max_user_instances), and root's processes in all
// containers share root's.
const lookEvery = 100 * time.Millisecond

// watchDir sets up inotify; on failure it is as without.
func (w *Writer) watchDir() error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	const events = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE
	if _, err := unix.InotifyAddWatch(fd, w.dir, events); err != nil {
		_ = unix.Close(fd)
		return &os.PathError{Op: "inotify_add_watch", Path: w.dir, Err: err}
	}
	if err := w.poll(unix.EPOLL_CTL_ADD, fd); err != nil {
		_ = unix.Close(fd)
		return err
	}
	w.inotify = fd
	return nil
}

// lookAround is what inotify would have told; it also tries to get it back.
func (w *Writer) lookAround(now time.Time) error {
	w.lookAt = now.Add(lookEvery)
	if w.watchDir() == nil {
		slog.Info("watching for log streams again")
	}
	return w.rescan()
}

// rescan makes up for events that were lost.
func (w *Writer) rescan() error {
	for name := range w.streams {
		w.drop(name)
	}
	return w.scan()
}

// look reads what inotify has to say and follows it.
func (w *Writer) look() error {
	var buf [16 << 10]byte
	for {
		n, err := unix.Read(w.inotify, buf[:])
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("read(inotify)", err)
		}
		for _, change := range parseChanges(buf[:n]) {
			if err := w.follow(change); err != nil {
				return err
			}
		}
	}
}

// change is one inotify event of the streams' directory.
type change struct {
	mask uint32
	name string
}

func parseChanges(buf []byte) []change {
	var changes []change
	for len(buf) >= unix.SizeofInotifyEvent {
		event := (*unix.InotifyEvent)(unsafe.Pointer(&buf[0]))
		end := unix.SizeofInotifyEvent + int(event.Len)
		name, _, _ := bytes.Cut(buf[unix.SizeofInotifyEvent:end], []byte{0})
		changes = append(changes, change{mask: event.Mask, name: string(name)})
		buf = buf[end:]
	}
	return changes
}

func (w *Writer) follow(c change) error {
	switch {
	case c.mask&unix.IN_Q_OVERFLOW != 0:
		return w.rescan()
	case strings.HasPrefix(c.name, "."):
	case strings.HasSuffix(c.name, logstream.EndedSuffix):
		if c.mask&unix.IN_CREATE != 0 {
			w.mark(c.name)
		}
	case c.mask&(unix.IN_MOVED_FROM|unix.IN_DELETE) != 0:
		w.drop(c.name)
	case c.mask&unix.IN_MOVED_TO != 0:
		w.add(c.name)
	}
	return nil
}
