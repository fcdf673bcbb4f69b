//go:build linux

package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// stdio holds the three streams, opened in the host's root; -1 means the container's /dev/null.
type stdio struct {
	fds   [3]int
	tty   bool
	given bool // by the launcher, to the user too
}

func (st *stage) openStdio() (*stdio, error) {
	if st.ready != nil {
		return &stdio{fds: st.ready.Streams, tty: st.spec.TTY, given: true}, nil
	}
	return openStdio(st.spec)
}

// openStdio opens the FIFOs; a terminal is made later, in the container.
func openStdio(spec *launchspec.Spec) (*stdio, error) {
	s := &stdio{fds: [3]int{-1, -1, -1}, tty: spec.TTY}
	if spec.TTY {
		return s, nil
	}
	var err error
	for i, stream := range []struct {
		path string
		mode int
	}{
		// A FIFO for stdin is opened read-only: its end of file must reach the workload. The
		// log writer keeps a writer open, so that the open does not block.
		{spec.Stdin, unix.O_RDONLY},
		{spec.Stdout, unix.O_RDWR},
		{spec.Stderr, unix.O_RDWR},
	} {
		if s.fds[i], err = openStream(stream.path, stream.mode); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// firstStdioFD keeps the streams away from 0..3, which are put in place last.
const firstStdioFD = 10

func openStream(path string, mode int) (int, error) {
	if path == "" {
		return -1, nil
	}
	fd, err := unix.Open(path, mode|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open stream %s: %w", path, err)
	}
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, firstStdioFD)
	unix.Close(fd)
	if err != nil {
		return -1, fmt.Errorf("hold stream %s: %w", path, err)
	}
	return high, nil
}

// install makes the streams 0, 1 and 2. The user owns them, so that /dev/stdout can be
// opened again.
func (s *stdio) install(user *user) error {
	for i, fd := range s.fds {
		if fd < 0 {
			null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("open /dev/null: %w", err)
			}
			fd = null
		} else if !s.given || s.tty {
			if err := giveStream(fd, user.UID); err != nil {
				return err
			}
		}
		if err := unix.Dup3(fd, i, 0); err != nil {
			return fmt.Errorf("install stream %d: %w", i, err)
		}
	}
	if !s.tty {
		return nil
	}
	return controlTerminal()
}

func giveStream(fd int, user uint32) error {
	if err := unix.Fchown(fd, int(user), -1); err != nil {
		return fmt.Errorf("give stream to the user: %w", err)
	}
	return nil
}

// controlTerminal makes stdin the session's terminal.
func controlTerminal() error {
	if err := unix.IoctlSetInt(int(os.Stdin.Fd()), unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("set controlling terminal: %w", err)
	}
	return nil
}
