package logwriter

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/logs/logstream"
)

// outSize bounds how much is appended by one write.
const outSize = 512 << 10

var streamNames = [2]string{logstream.StdoutFIFO, logstream.StderrFIFO}

// fifo is one of a stream's two pipes.
type fifo struct {
	stream *stream
	index  int // 0 stdout, 1 stderr
	fd     int
	size   int // of the pipe
	spool  *spool
	eof    bool
	held   bool // until its clients have caught up
}

// stream is one container attempt's output.
type stream struct {
	name, dir string
	inode     uint64 // of dir: a new directory under the same name is another stream
	config    logstream.Stream
	fifos     [2]*fifo
	log       *logFile
	state     state
	stateFile *stateFile
	copy      *copier
	dropped   int64 // bytes that could not be written to the log file
	clients   map[*client]struct{}
	terminal  *terminal // nil for none
	input     *input
}

// openStream opens what lies in dir and finishes what a killed writer had begun.
// inherited are the FIFOs' descriptors from the store, -1 where there is none; they
// belong to the stream from then on, or are closed on an error.
func openStream(dir string, inherited [2]int) (*stream, error) {
	s := &stream{name: filepath.Base(dir), dir: dir, clients: map[*client]struct{}{}}
	for i := range s.fifos {
		s.fifos[i] = &fifo{stream: s, index: i, fd: inherited[i]}
	}
	if err := s.open(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *stream) open() (err error) {
	if s.config, err = logstream.Load(s.dir); err != nil {
		return err
	}
	if s.inode, err = inodeOf(s.dir); err != nil {
		return err
	}
	if s.log, err = openLogFile(s.config); err != nil {
		return fmt.Errorf("open log file: %w", err)
	}
	if s.stateFile, s.state, err = openState(filepath.Join(s.dir, "state")); err != nil {
		return fmt.Errorf("open state: %w", err)
	}
	for i, f := range s.fifos {
		path := filepath.Join(s.dir, streamNames[i])
		if f.spool, err = openSpool(path+".spool", &s.state.Pos[i]); err != nil {
			return fmt.Errorf("open spool: %w", err)
		}
		if err = f.open(path); err != nil {
			return err
		}
	}
	return s.recover()
}

// markOpen tells the agent that the pipes are held.
func (s *stream) markOpen() error {
	return os.WriteFile(filepath.Join(s.dir, logstream.OpenMark), nil, 0o600)
}

func inodeOf(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	return st.Ino, nil
}

// open opens the FIFO at path unless the inherited descriptor is that very FIFO.
func (f *fifo) open(path string) error {
	if f.fd >= 0 {
		var have, want unix.Stat_t
		err := errors.Join(unix.Fstat(f.fd, &have), unix.Lstat(path, &want))
		if err == nil && have.Ino == want.Ino && have.Dev == want.Dev {
			return f.measure()
		}
		_ = unix.Close(f.fd)
		f.fd = -1
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	f.fd = fd
	return f.measure()
}

func (f *fifo) measure() error {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return fmt.Errorf("%s of stream %s is no FIFO", streamNames[f.index], f.stream.name)
	}
	size, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETPIPE_SZ, 0)
	f.size = size
	return os.NewSyscallError("fcntl(F_GETPIPE_SZ)", err)
}

// recover appends what the log file lacks of the records that were in flight.
func (s *stream) recover() error {
	if s.state.Inflight == 0 {
		return nil
	}
	i := int(s.state.Inflight - 1)
	if i < 0 || i > 1 {
		return fmt.Errorf("state of stream %s names FIFO %d", s.name, i)
	}
	length := s.state.End - s.state.Pos[i]
	if length < 0 || length > 2*batch || s.state.End > s.fifos[i].spool.size {
		s.state.Inflight = 0 // the spool was not on tmpfs: it is gone
		return s.stateFile.save(s.state)
	}
	src, err := s.fifos[i].spool.read(make([]byte, length), s.state.Pos[i])
	if err != nil {
		return fmt.Errorf("read spool: %w", err)
	}
	out := remakeRecords(src, newPrefixes(time.Unix(0, s.state.Stamp), streamNames[i]))
	have := min(max(0, s.log.size-s.state.LogSize), int64(len(out)))
	s.append(out[have:])
	return s.done(i)
}

// pull takes a batch from f and delivers it. It says whether f is at its end: no
// writer is left and everything is in the log file.
func (s *stream) pull(f *fifo, w *Writer, hangup bool) (eof bool, err error) {
	n, err := f.spool.pull(f.fd)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return false, nil
	case errors.Is(err, unix.ENOSPC):
		return false, f.spool.leaveTmpfs(s.state.Pos[f.index])
	case err != nil:
		return false, fmt.Errorf("splice from %s: %w", streamNames[f.index], err)
	case n == 0 && !hangup:
		return false, nil
	}
	if len(s.clients) > 0 && n > 0 {
		if data, err := f.spool.read(make([]byte, n), f.spool.size-int64(n)); err == nil {
			w.tap(s, f.index, data)
		}
	}
	eof = n == 0
	return eof, s.deliver(f, w.scratch, eof)
}

// deliver appends what is in f's spool as far as it is whole lines, or all if it is the last.
func (s *stream) deliver(f *fifo, scratch *scratch, last bool) error {
	i := f.index
	for {
		src, err := f.spool.read(scratch.in[:], s.state.Pos[i])
		if err != nil {
			return fmt.Errorf("read spool: %w", err)
		}
		now := time.Now()
		whole := last && s.state.Pos[i]+int64(len(src)) == f.spool.size
		room := max(1, min(outSize, s.log.maxSize-s.log.size))
		out, consumed := appendRecords(scratch.out[:0], src, newPrefixes(now, streamNames[i]), whole, int(room))
		scratch.out = out[:0]
		if consumed == 0 {
			return s.trim(f)
		}
		if err := s.commit(i, out, consumed, now); err != nil {
			return err
		}
		s.copy.lines(src[:consumed], i, now)
	}
}

// scratch is memory that the streams share, as one is served at a time.
type scratch struct {
	in  [batch]byte
	out []byte
}

// commit appends the records made of the next consumed bytes of FIFO i.
func (s *stream) commit(i int, out []byte, consumed int, now time.Time) error {
	s.state.Inflight, s.state.LogSize, s.state.Stamp = int64(i+1), s.log.size, now.UnixNano()
	s.state.End = s.state.Pos[i] + int64(consumed)
	if err := s.stateFile.save(s.state); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	s.append(out)
	if err := s.done(i); err != nil {
		return err
	}
	if err := s.log.rotate(now); err != nil {
		slog.Error("cannot rotate the log file", "pod", s.config.PodNamespace+"/"+s.config.PodName,
			"uid", s.config.PodUID, "container", s.config.Container, "err", err)
		s.log.maxSize = math.MaxInt64 // once is enough said; what is there is kept
	}
	return nil
}

func (s *stream) done(i int) error {
	s.state.Inflight, s.state.Pos[i] = 0, s.state.End
	if err := s.stateFile.save(s.state); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	return nil
}

// append drops the records when the disk refuses them, as a container runtime does: a
// full disk must not stop workloads that merely talk.
func (s *stream) append(out []byte) {
	err := s.log.append(out)
	if err == nil {
		return
	}
	if s.dropped == 0 {
		slog.Error("cannot write the log file; output is dropped", "pod", s.config.PodNamespace+"/"+s.config.PodName,
			"uid", s.config.PodUID, "container", s.config.Container, "err", err)
	}
	s.dropped += int64(len(out))
}

func (s *stream) trim(f *fifo) error {
	empty, err := f.spool.trim(s.state.Pos[f.index])
	if err != nil {
		return fmt.Errorf("trim spool: %w", err)
	}
	if empty {
		s.state.Pos[f.index] = 0
		if err := s.stateFile.save(s.state); err != nil {
			return fmt.Errorf("save state: %w", err)
		}
	}
	return nil
}

// ended makes the kernel report a hang-up on pipes that never had a writer: a pipe
// hangs up only after one was seen.
func (s *stream) ended() {
	for i := range s.fifos {
		fd, err := unix.Open(filepath.Join(s.dir, streamNames[i]), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			_ = unix.Close(fd)
		}
	}
}

// finish completes the log and takes the stream directory away.
func (s *stream) finish() error {
	done := filepath.Join(filepath.Dir(s.dir), logstream.DonePrefix+s.name)
	err := errors.Join(s.log.complete(), os.RemoveAll(done), os.Rename(s.dir, done))
	s.close()
	return errors.Join(err, os.RemoveAll(s.dir+logstream.EndedSuffix), os.RemoveAll(done))
}

func (s *stream) close() {
	for _, f := range s.fifos {
		if f.fd >= 0 {
			_ = unix.Close(f.fd)
			f.fd = -1
		}
		if f.spool != nil {
			f.spool.close()
		}
	}
	if s.log != nil {
		s.log.close()
	}
	if s.stateFile != nil {
		_ = s.stateFile.file.Close()
	}
}
