//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// barrierTimeout bounds the wait for systemd to have read our messages.
const barrierTimeout = 30 * time.Second

// notifier speaks sd_notify(3). It is connected before any namespace changes.
type notifier struct{ fd int }

// newNotifier connects to $NOTIFY_SOCKET and removes it from our environment. Without
// one (a run by hand) messages go nowhere.
func newNotifier() (*notifier, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	os.Unsetenv("NOTIFY_SOCKET")
	if path == "" {
		return &notifier{fd: -1}, nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open notify socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, fmt.Errorf("connect to notify socket %s: %w", path, err)
	}
	return &notifier{fd: fd}, nil
}

// appoint makes pid the unit's main process. From then on systemd hears nobody else
// (NotifyAccess=main): what workloads start, and what kubectl exec starts, cannot speak
// for the unit even where they reach systemd.
func (n *notifier) appoint(pid int) error {
	return n.send("MAINPID="+strconv.Itoa(pid), nil)
}

// running says in the name of the main process that it runs: root may (unix(7),
// SCM_CREDENTIALS). NOTIFYACCESS= closes the door behind us where systemd knows it (254).
// A main process that has ended meanwhile and was reaped is none to speak for: systemd
// knows more than we do.
func (n *notifier) running(pid int) error {
	as := unix.UnixCredentials(&unix.Ucred{Pid: int32(pid), Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())})
	err := n.send("READY=1\nNOTIFYACCESS=none", as)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// send sends one message, with control data or none, and returns once systemd has handled
// it (BARRIER=1): after that neither our exit nor the workload's can overtake it.
func (n *notifier) send(message string, control []byte) error {
	if n.fd < 0 {
		return nil
	}
	if err := unix.Sendmsg(n.fd, []byte(message), control, nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("make barrier: %w", err)
	}
	defer unix.Close(pipe[0])
	err := unix.Sendmsg(n.fd, []byte("BARRIER=1"), unix.UnixRights(pipe[1]), nil, unix.MSG_NOSIGNAL)
	unix.Close(pipe[1])
	if err != nil {
		return fmt.Errorf("send barrier: %w", err)
	}
	return waitHangup(pipe[0], barrierTimeout)
}

func waitHangup(fd int, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("systemd did not answer the barrier within %s", timeout)
		}
		fds := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for barrier: %w", err)
		}
		if n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0 {
			return nil
		}
	}
}
