package logwriter

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// batch is how much one turn takes from one FIFO: fairness between containers.
	batch = 256 << 10
	// punchStep is how much done content a spool may keep while a line is unfinished.
	punchStep = 1 << 20
)

// spool is the file on tmpfs between a FIFO and the log file. Its size says what was
// taken from the FIFO. Offsets only grow until everything is done; then it is empty.
type spool struct {
	path    string
	file    *os.File // nil until there is something
	size    int64
	punched int64
}

// openSpool looks at what an earlier writer left behind and corrects pos.
func openSpool(path string, pos *int64) (*spool, error) {
	s := &spool{path: path}
	info, err := os.Stat(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err == nil {
		s.size = info.Size()
	}
	if s.size < *pos {
		*pos = 0 // killed between the truncation and its note
	}
	return s, nil
}

func (s *spool) open() (err error) {
	if s.file == nil {
		s.file, err = os.OpenFile(s.path, os.O_RDWR|os.O_CREATE, 0o600)
	}
	return err
}

// pull moves at most batch bytes from fifo to the end of the spool. n is 0 at the end
// of the FIFO, and EAGAIN is returned when it is empty.
func (s *spool) pull(fifo int) (n int, err error) {
	if err := s.open(); err != nil {
		return 0, err
	}
	for {
		offset := s.size
		moved, err := unix.Splice(fifo, nil, int(s.file.Fd()), &offset, batch, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, err
		}
		s.size += moved
		return int(moved), nil
	}
}

// leaveTmpfs goes on in anonymous memory when the tmpfs is full: what is there then
// does not survive a kill.
func (s *spool) leaveTmpfs(pos int64) error {
	fd, err := unix.MemfdCreate("spool", unix.MFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	memory := os.NewFile(uintptr(fd), "spool")
	rest := io.NewSectionReader(s.file, pos, s.size-pos)
	if _, err := io.Copy(io.NewOffsetWriter(memory, pos), rest); err != nil {
		return errors.Join(fmt.Errorf("copy spool: %w", err), memory.Close())
	}
	err = errors.Join(s.file.Truncate(0), s.file.Close())
	s.file = memory
	return err
}

// read fills buf from pos on.
func (s *spool) read(buf []byte, pos int64) ([]byte, error) {
	if pos >= s.size {
		return nil, nil
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	buf = buf[:min(int64(len(buf)), s.size-pos)]
	_, err := s.file.ReadAt(buf, pos)
	return buf, err
}

// trim gives back the memory before pos; empty says that pos is to be 0 again.
func (s *spool) trim(pos int64) (empty bool, err error) {
	if pos < s.size {
		return false, s.punch(pos)
	}
	if s.size == 0 {
		return false, nil
	}
	if err := s.file.Truncate(0); err != nil {
		return false, err
	}
	s.size, s.punched = 0, 0
	return true, nil
}

func (s *spool) punch(pos int64) error {
	pos &^= 4095
	if pos-s.punched < punchStep {
		return nil
	}
	err := unix.Fallocate(int(s.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, s.punched, pos-s.punched)
	s.punched = pos
	return os.NewSyscallError("fallocate", err)
}

func (s *spool) close() {
	if s.file != nil {
		_ = s.file.Close()
	}
}
