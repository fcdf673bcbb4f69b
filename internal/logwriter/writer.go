package logwriter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/logs/logstream"
)

const (
	// retryAfter is when a stream or FIFO that failed is tried again.
	retryAfter = time.Second
	// bigPipe is a busy FIFO's size. Pipe pages count against root's
	// fs.pipe-user-pages-soft, beyond which the pipes of all of root's processes,
	// containers included, shrink to two pages: so only busy ones grow, within pipeBudget.
	bigPipe    = 1 << 20
	usualPipe  = 64 << 10
	pipeBudget = 8 << 20
)

// Options of a Writer.
type Options struct {
	// Dir is paths.Layout.LogStreams.
	Dir string
	// Journal is journald's native socket; empty for no copies.
	Journal string
}

// Writer serves all streams of a node from one goroutine.
type Writer struct {
	dir      string
	journal  *journal
	notify   *notifier
	epoll    int
	inotify  int
	wake     int // an eventfd, written when ctx ends
	streams  map[string]*stream
	fifos    map[int32]*fifo
	paused   map[*fifo]time.Time // taken out of epoll until then
	retries  map[string]time.Time
	socket   int
	handlers map[int32]func(events uint32) // of all other descriptors in epoll
	clients  map[*client]struct{}
	muted    map[*terminal]time.Time // taken out of epoll until then
	feeds    map[*stream]time.Time   // have input that the container does not read
	stored   map[string]int          // descriptors from systemd's store not claimed yet
	scratch  *scratch
	grown    int // bytes by which pipes were made bigger
	watchdog time.Time
	lookAt   time.Time // without inotify: when to look at the directory next
}

// New prepares a writer. Run serves.
func New(o Options) (*Writer, error) {
	w := &Writer{
		dir: o.Dir, journal: newJournal(o.Journal), notify: newNotifier(),
		epoll: -1, inotify: -1, wake: -1, socket: -1,
		handlers: map[int32]func(uint32){}, clients: map[*client]struct{}{},
		muted: map[*terminal]time.Time{}, feeds: map[*stream]time.Time{},
		streams: map[string]*stream{}, fifos: map[int32]*fifo{}, paused: map[*fifo]time.Time{},
		retries: map[string]time.Time{}, stored: inheritedFDs(), scratch: &scratch{},
	}
	if err := w.open(); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *Writer) open() (err error) {
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		return fmt.Errorf("create stream directory: %w", err)
	}
	if w.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if w.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	if err := w.poll(unix.EPOLL_CTL_ADD, w.wake); err != nil {
		return err
	}
	if err := w.watchDir(); err != nil {
		slog.Warn("cannot watch for log streams, looking for them instead", "every", lookEvery, "err", err)
	}
	return w.serveSocket()
}

func (w *Writer) poll(op, fd int) error {
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(w.epoll, op, fd, &event))
}

// Run serves until ctx ends. Streams stay as they are: the next writer goes on.
func (w *Writer) Run(ctx context.Context) error {
	defer w.close()
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_, _ = unix.Write(w.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !stop() {
			<-woken // the descriptor stays open until then
		}
	}()
	if err := w.scan(); err != nil {
		return err
	}
	w.watchdog = time.Now() // the first ping is due
	w.notify.send("READY=1\nSTATUS=" + fmt.Sprintf("%d streams", len(w.streams)))
	events := make([]unix.EpollEvent, 128)
	for ctx.Err() == nil {
		n, err := unix.EpollWait(w.epoll, events, w.timeout(time.Now()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("epoll_wait", err)
		}
		changed := false
		for _, event := range events[:max(0, n)] {
			if int(event.Fd) == w.inotify {
				changed = true // last: it may reuse descriptors' numbers
			} else if f := w.fifos[event.Fd]; f != nil {
				w.serve(f, event.Events&(unix.EPOLLHUP|unix.EPOLLERR) != 0)
			} else if handle := w.handlers[event.Fd]; handle != nil {
				handle(event.Events)
			}
		}
		if changed {
			if err := w.look(); err != nil {
				return err
			}
		}
		if err := w.tick(time.Now()); err != nil {
			return err
		}
	}
	return nil
}

// serve takes one batch from f.
func (w *Writer) serve(f *fifo, hangup bool) {
	before := f.spool.size
	eof, err := f.stream.pull(f, w, hangup)
	if err != nil {
		slog.Error("cannot write logs; trying again", "uid", f.stream.config.PodUID, "container", f.stream.config.Container, "err", err)
		w.pause(f)
		return
	}
	if eof {
		w.endFIFO(f)
		return
	}
	if taken := f.spool.size - before; int(taken) >= f.size/4*3 {
		w.grow(f)
	}
	if f.stream.congested() {
		w.hold(f)
	}
}

// grow makes the pipe of a container that writes faster than we read bigger.
func (w *Writer) grow(f *fifo) {
	if f.size >= bigPipe || w.grown+bigPipe-f.size > pipeBudget {
		return
	}
	size, err := unix.FcntlInt(uintptr(f.fd), unix.F_SETPIPE_SZ, bigPipe)
	if err == nil {
		w.grown += size - f.size
		f.size = size
	}
}

func (w *Writer) pause(f *fifo) {
	if _, ok := w.paused[f]; !ok {
		_ = w.poll(unix.EPOLL_CTL_DEL, f.fd)
	}
	w.paused[f] = time.Now().Add(retryAfter)
}

func (w *Writer) endFIFO(f *fifo) {
	w.unwatch(f)
	f.eof = true
	s := f.stream
	if !s.fifos[0].eof || !s.fifos[1].eof {
		return
	}
	delete(w.streams, s.name)
	w.closeExtras(s)
	if err := s.finish(); err != nil {
		slog.Error("cannot remove a stream's directory", "uid", s.config.PodUID, "container", s.config.Container, "err", err)
	}
	w.notify.forget(s.name)
}

func (w *Writer) unwatch(f *fifo) {
	if w.fifos[int32(f.fd)] != f {
		return
	}
	if _, ok := w.paused[f]; !ok {
		_ = w.poll(unix.EPOLL_CTL_DEL, f.fd)
	}
	delete(w.paused, f)
	delete(w.fifos, int32(f.fd))
	w.grown -= max(0, f.size-usualPipe)
}

// add opens the stream of that name; failures are tried again later.
func (w *Writer) add(name string) {
	if _, ok := w.streams[name]; ok {
		return
	}
	delete(w.retries, name)
	dir := filepath.Join(w.dir, name)
	s, err := openStream(dir, w.claim(name))
	if errors.Is(err, os.ErrNotExist) && !exists(dir) {
		return
	}
	if err != nil {
		slog.Error("cannot open a log stream; trying again", "stream", name, "err", err)
		w.retries[name] = time.Now().Add(retryAfter)
		return
	}
	if err := w.openInput(s); err != nil {
		slog.Error("cannot open stdin; trying again", "uid", s.config.PodUID, "container", s.config.Container, "err", err)
		s.close()
		w.retries[name] = time.Now().Add(retryAfter)
		return
	}
	s.copy = newCopier(w.journal, s.config)
	w.streams[name] = s
	if master, ok := w.stored[terminalName(name)]; ok {
		delete(w.stored, terminalName(name))
		if err := w.adoptTerminal(s, master); err != nil {
			slog.Error("cannot take up a terminal", "uid", s.config.PodUID, "container", s.config.Container, "err", err)
		}
	}
	for i, f := range s.fifos {
		w.notify.store(name, i, f.fd) // systemd knows a descriptor that it has already
		w.fifos[int32(f.fd)] = f
		w.grown += max(0, f.size-usualPipe)
		if err := w.poll(unix.EPOLL_CTL_ADD, f.fd); err != nil {
			w.paused[f] = time.Now().Add(retryAfter)
		}
	}
	if err := s.markOpen(); err != nil {
		slog.Error("cannot mark a log stream as open", "uid", s.config.PodUID, "container", s.config.Container, "err", err)
	}
	if exists(dir + logstream.EndedSuffix) {
		w.endTerminal(s)
		s.ended()
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// claim takes the stream's descriptors out of what systemd passed on.
func (w *Writer) claim(name string) [2]int {
	fds := [2]int{-1, -1}
	for i := range fds {
		if fd, ok := w.stored[storeName(name, i)]; ok {
			fds[i] = fd
			delete(w.stored, storeName(name, i))
		}
	}
	return fds
}

// drop forgets a stream whose directory the agent has taken away.
func (w *Writer) drop(name string) {
	delete(w.retries, name)
	s, ok := w.streams[name]
	if !ok {
		return
	}
	if inode, err := inodeOf(s.dir); err == nil && inode == s.inode {
		return // an old event: this is a newer directory
	}
	for _, f := range s.fifos {
		w.unwatch(f)
	}
	delete(w.streams, name)
	w.closeExtras(s)
	s.close()
	w.notify.forget(name)
}

// scan opens everything that is there, and at the first time removes what an earlier
// writer left half removed and returns the descriptors that nobody needs.
func (w *Writer) scan() error {
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		return fmt.Errorf("list streams: %w", err)
	}
	for _, entry := range entries {
		name := entry.Name()
		switch {
		case strings.HasPrefix(name, logstream.DonePrefix):
			_ = os.RemoveAll(filepath.Join(w.dir, name))
		case strings.HasPrefix(name, "."):
		case entry.IsDir():
			w.add(name)
		default:
			w.mark(name)
		}
	}
	for name, fd := range w.stored {
		_ = unix.Close(fd)
		w.notify.send("FDSTOREREMOVE=1\nFDNAME=" + name)
		delete(w.stored, name)
	}
	return nil
}

// mark reads a file beside the directories: the attempt is over.
func (w *Writer) mark(file string) {
	name, ok := strings.CutSuffix(file, logstream.EndedSuffix)
	if !ok {
		return
	}
	if s, ok := w.streams[name]; ok {
		w.endTerminal(s)
		s.ended()
	} else if !exists(filepath.Join(w.dir, name)) {
		_ = os.Remove(filepath.Join(w.dir, file))
	}
}

// tick does what is due.
func (w *Writer) tick(now time.Time) error {
	for name, due := range w.retries {
		if !now.Before(due) {
			w.add(name)
		}
	}
	for f, due := range w.paused {
		if now.Before(due) {
			continue
		}
		if f.held {
			f.held = false
			w.cut(f.stream)
		}
		if w.poll(unix.EPOLL_CTL_ADD, f.fd) == nil {
			delete(w.paused, f)
		}
	}
	for t, due := range w.muted {
		if !now.Before(due) {
			w.watchTerminal(t)
		}
	}
	for s, due := range w.feeds {
		if !now.Before(due) {
			w.feed(s)
		}
	}
	if w.notify.watchdog > 0 && !now.Before(w.watchdog) {
		w.notify.send("WATCHDOG=1")
		w.watchdog = now.Add(w.notify.watchdog / 3)
	}
	if w.inotify < 0 && !now.Before(w.lookAt) {
		return w.lookAround(now)
	}
	return nil
}

// timeout is epoll_wait's, in milliseconds; -1 when nothing is due.
func (w *Writer) timeout(now time.Time) int {
	next, due := time.Time{}, false
	sooner := func(t time.Time) {
		if !due || t.Before(next) {
			next, due = t, true
		}
	}
	for _, at := range w.retries {
		sooner(at)
	}
	for _, at := range w.paused {
		sooner(at)
	}
	for _, at := range w.muted {
		sooner(at)
	}
	for _, at := range w.feeds {
		sooner(at)
	}
	if w.notify.watchdog > 0 {
		sooner(w.watchdog)
	}
	if w.inotify < 0 {
		sooner(w.lookAt)
	}
	if !due {
		return -1
	}
	return max(0, int(next.Sub(now)/time.Millisecond)+1)
}

func (w *Writer) close() {
	for _, s := range w.streams {
		w.closeExtras(s)
		s.close()
	}
	for c := range w.clients {
		w.hangUp(c)
	}
	for _, fd := range []int{w.socket, w.epoll, w.inotify, w.wake, w.journal.fd, w.notify.fd} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}
