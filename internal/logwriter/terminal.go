package logwriter

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/logs/logstream"
)

// terminal is a container's pseudo-terminal. Its output goes through the stdout FIFO, by
// splice(2): like that one it is taken and kept within one system call. The master stays
// open, here or in systemd's store, until the attempt is over: its end would hang up on the
// container, which may well close its terminal and open it again.
type terminal struct {
	stream  *stream
	master  int
	fifo    int // the stdout FIFO's write end
	watched bool
	over    bool
}

// adoptTerminal makes master the stream's terminal.
func (w *Writer) adoptTerminal(s *stream, master int) error {
	if s.terminal != nil {
		w.closeTerminal(s) // the same one once more: the first answer was lost
	}
	if err := unix.SetNonblock(master, true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	path := filepath.Join(s.dir, logstream.StdoutFIFO)
	fifo, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	s.terminal = &terminal{stream: s, master: master, fifo: fifo}
	w.watchTerminal(s.terminal)
	return nil
}

func (w *Writer) watchTerminal(t *terminal) {
	if t.watched {
		return
	}
	t.watched = true
	w.handlers[int32(t.master)] = func(uint32) { w.pump(t) }
	_ = w.poll(unix.EPOLL_CTL_ADD, t.master)
	delete(w.muted, t)
}

// mute stops looking at a terminal until it is due again.
func (w *Writer) mute(t *terminal) {
	if t.watched {
		t.watched = false
		delete(w.handlers, int32(t.master))
		_ = w.poll(unix.EPOLL_CTL_DEL, t.master)
	}
	w.muted[t] = time.Now().Add(mutedFor)
}

// mutedFor is how long a terminal that nobody has open, or whose FIFO is full, is left alone.
const mutedFor = 100 * time.Millisecond

// pump moves what the terminal has to say into the FIFO.
func (w *Writer) pump(t *terminal) {
	for range 4 {
		n, err := unix.Splice(t.master, nil, t.fifo, nil, usualPipe, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		switch {
		case errors.Is(err, unix.EINTR), err == nil && n > 0:
			continue
		case errors.Is(err, unix.EAGAIN) && (!t.drained() || !t.over):
			if !t.drained() {
				w.mute(t) // the FIFO is full
			}
			return
		case t.over:
			w.closeTerminal(t.stream)
			return
		case err != nil && !errors.Is(err, unix.EIO):
			slog.Error("cannot read a terminal", "uid", t.stream.config.PodUID, "container", t.stream.config.Container, "err", err)
		}
		w.mute(t) // nobody has it open now
		return
	}
}

// drained says whether the terminal has nothing more to say.
func (t *terminal) drained() bool {
	n, err := unix.IoctlGetInt(t.master, unix.TIOCINQ)
	return err != nil || n == 0
}

// endTerminal closes the terminal once its output is in the FIFO.
func (w *Writer) endTerminal(s *stream) {
	if s.terminal != nil {
		s.terminal.over = true
		w.pump(s.terminal)
	}
}

func (w *Writer) closeTerminal(s *stream) {
	t := s.terminal
	if t == nil {
		return
	}
	w.mute(t)
	delete(w.muted, t)
	_ = unix.Close(t.master)
	_ = unix.Close(t.fifo)
	s.terminal = nil
}

func (t *terminal) resize(width, height uint16) error {
	return unix.IoctlSetWinsize(t.master, unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
}

// openInput holds the write end of a stdin FIFO, unless its one client has gone.
func (w *Writer) openInput(s *stream) error {
	s.input = &input{fd: -1}
	name := s.name + "." + logstream.StdinFIFO
	inherited, ok := w.stored[name]
	delete(w.stored, name)
	switch {
	case !s.config.Stdin || s.config.TTY || exists(filepath.Join(s.dir, logstream.StdinClosed)):
		if ok {
			_ = unix.Close(inherited)
		}
		return nil
	case ok:
		s.input.fd = inherited
		return nil
	}
	path := filepath.Join(s.dir, logstream.StdinFIFO)
	// A FIFO without a reader can be opened for reading and writing only; then it has one.
	both, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(both)
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	s.input.fd = fd
	w.notify.keep(name, fd)
	return nil
}

// input is what clients have sent and the container has not read.
type input struct {
	fd      int // of the FIFO; -1 with a terminal, or once closed
	pending []byte
	ending  bool // close it once pending is written
}

// maxPending is how much input is taken from clients ahead of the container.
const maxPending = 64 << 10

// target is where input goes, -1 for nowhere.
func (s *stream) target() int {
	if s.terminal != nil {
		return s.terminal.master
	}
	return s.input.fd
}

// feed writes input as far as the container takes it, and comes back when it takes more.
func (w *Writer) feed(s *stream) {
	in := s.input
	for len(in.pending) > 0 && s.target() >= 0 {
		n, err := unix.Write(s.target(), in.pending)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			w.feeds[s] = time.Now().Add(feedAgain)
			return
		case err != nil:
			in.pending = nil // nobody reads any more
		default:
			in.pending = in.pending[n:]
		}
	}
	in.pending = nil
	delete(w.feeds, s)
	if in.ending {
		w.closeInput(s)
	}
	for c := range s.clients {
		w.listen(c)
	}
}

// feedAgain is when a container that does not read its input is offered it again.
const feedAgain = 10 * time.Millisecond

// closeInput is what the container reads as the end of its stdin.
func (w *Writer) closeInput(s *stream) {
	if s.input.fd < 0 {
		return
	}
	mark := filepath.Join(s.dir, logstream.StdinClosed)
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		slog.Error("cannot mark stdin as closed", "uid", s.config.PodUID, "container", s.config.Container, "err", err)
	}
	w.notify.send("FDSTOREREMOVE=1\nFDNAME=" + s.name + "." + logstream.StdinFIFO)
	w.notify.barrier() // systemd's copy keeps the FIFO open
	_ = unix.Close(s.input.fd)
	s.input.fd = -1
}

// closeExtras gives back what a stream has beside its two FIFOs.
func (w *Writer) closeExtras(s *stream) {
	w.closeTerminal(s)
	delete(w.feeds, s)
	if s.input != nil && s.input.fd >= 0 {
		_ = unix.Close(s.input.fd)
		s.input.fd = -1
	}
	for c := range s.clients {
		w.finish(c)
	}
}

var errNoStream = fmt.Errorf("container is not running")
