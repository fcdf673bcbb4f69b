package probes

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// poller is an epoll(7) of a few sockets, for which a goroutine waits as for any file: the runtime's
// own poller watches it. That costs a wake-up for those that are ready together, where
// each net.Conn is one.
type poller struct {
	file   *os.File
	raw    syscall.RawConn
	events []unix.EpollEvent
	until  time.Time
}

// newPoller makes a poller of size sockets at most.
func newPoller(size int) (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set epoll non-blocking: %w", err)
	}
	file := os.NewFile(uintptr(fd), "epoll")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("watch epoll: %w", err)
	}
	return &poller{file: file, raw: raw, events: make([]unix.EpollEvent, size)}, nil
}

// close leaves the sockets as they are.
func (p *poller) close() { p.file.Close() }

// watch lets wait return id for the socket when one of events is there. Close ends it.
func (p *poller) watch(socket, id int, events uint32, known bool) error {
	op := unix.EPOLL_CTL_ADD
	if known {
		op = unix.EPOLL_CTL_MOD
	}
	var err error
	if e := p.raw.Control(func(fd uintptr) {
		err = unix.EpollCtl(int(fd), op, socket, &unix.EpollEvent{Events: events, Fd: int32(id)})
	}); e != nil {
		return e
	}
	return err
}

// wait returns what is ready, until then at the latest.
func (p *poller) wait(until time.Time) ([]unix.EpollEvent, error) {
	if !until.Equal(p.until) {
		if err := p.file.SetReadDeadline(until); err != nil {
			return nil, fmt.Errorf("set epoll's deadline: %w", err)
		}
		p.until = until
	}
	var n int
	var err error
	look := func(fd uintptr) bool {
		n, err = unix.EpollWait(int(fd), p.events, 0)
		return n > 0 || err != nil && err != unix.EINTR
	}
	waited := p.raw.Read(look)
	if errors.Is(waited, os.ErrDeadlineExceeded) {
		waited = p.raw.Control(func(fd uintptr) { look(fd) }) // what came in time and was not seen
	}
	return p.events[:max(n, 0)], errors.Join(waited, err)
}
