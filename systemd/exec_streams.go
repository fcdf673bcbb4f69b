package systemd

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// drainTimeout bounds the wait for output that a process left behind by the command may
// still write.
const drainTimeout = 5 * time.Second

// execStreams are both ends of a command's streams. With a terminal the command opens its
// own, the slave, and we have the master.
type execStreams struct {
	stdin, stdout, stderr *os.File // the command's; nil is /dev/null
	in, out, err          *os.File // ours; nil where there is none
	master                *os.File
	output                sync.WaitGroup
	ended                 chan struct{}
}

func openStreams(req ExecRequest) (*execStreams, error) {
	s := &execStreams{ended: make(chan struct{})}
	if req.TTY {
		return s, nil // its terminal is the container's: useTerminal
	}
	var err error
	if req.Stdin != nil {
		if s.stdin, s.in, err = os.Pipe(); err != nil {
			return nil, fmt.Errorf("make stdin: %w", err)
		}
	}
	if s.out, s.stdout, err = os.Pipe(); err == nil {
		s.err, s.stderr, err = os.Pipe()
	}
	if err != nil {
		s.closeTheirs()
		s.close()
		return nil, fmt.Errorf("make output: %w", err)
	}
	return s, nil
}

// firstSize bounds how long a command waits for its terminal's size: a client that says
// it does so at once.
const firstSize = 100 * time.Millisecond

// useTerminal takes the master of the command's terminal. The command does not run yet:
// its terminal has its size from the start.
func (s *execStreams) useTerminal(fd int, sizes <-chan TermSize) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return fmt.Errorf("take over terminal: %w", err)
	}
	s.master = os.NewFile(uintptr(fd), "ptmx")
	s.in, s.out = s.master, s.master
	if sizes == nil {
		return nil
	}
	select {
	case size, ok := <-sizes:
		if ok {
			s.setSize(size)
		}
	case <-time.After(firstSize):
	}
	return nil
}

// give hands the command its ends.
func (s *execStreams) give(cmd *exec.Cmd) {
	for _, end := range []struct {
		file *os.File
		set  func()
	}{
		{s.stdin, func() { cmd.Stdin = s.stdin }},
		{s.stdout, func() { cmd.Stdout = s.stdout }},
		{s.stderr, func() { cmd.Stderr = s.stderr }},
	} {
		if end.file != nil { // a nil *os.File in an interface would not be nil there
			end.set()
		}
	}
}

// closeTheirs drops our copies of the command's ends, once it has them.
func (s *execStreams) closeTheirs() {
	for _, file := range []*os.File{s.stdin, s.stdout, s.stderr} {
		if file != nil {
			file.Close()
		}
	}
}

func (s *execStreams) close() {
	for _, file := range []*os.File{s.in, s.out, s.err} {
		if file != nil {
			file.Close()
		}
	}
	select {
	case <-s.ended:
	default:
		close(s.ended)
	}
}

// copy moves bytes until the command's side is closed.
func (s *execStreams) copy(req ExecRequest) {
	if s.in != nil && req.Stdin != nil {
		go s.copyIn(req.Stdin)
	}
	s.copyOut(s.out, orDiscard(req.Stdout))
	s.copyOut(s.err, orDiscard(req.Stderr))
	if s.master != nil && req.Resize != nil {
		go s.resize(req.Resize)
	}
}

func (s *execStreams) copyIn(from io.Reader) {
	_, _ = io.Copy(s.in, from)
	if s.master == nil {
		s.in.Close()
	}
}

func (s *execStreams) copyOut(from *os.File, to io.Writer) {
	if from == nil {
		return
	}
	s.output.Add(1)
	go func() {
		defer s.output.Done()
		if _, err := io.Copy(to, from); err != nil {
			// The reader of our output is gone: the command must not block on it.
			_, _ = io.Copy(io.Discard, from)
		}
	}()
}

func (s *execStreams) resize(sizes <-chan TermSize) {
	for {
		select {
		case <-s.ended:
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			s.setSize(size)
		}
	}
}

func (s *execStreams) setSize(size TermSize) {
	raw, err := s.master.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
	})
}

// drain waits for the rest of the output after the command has ended.
func (s *execStreams) drain() {
	done := make(chan struct{})
	go func() { s.output.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(drainTimeout):
		s.close()
		<-done
	}
}
