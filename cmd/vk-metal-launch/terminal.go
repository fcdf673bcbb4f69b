//go:build linux

package main

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// openTerminal makes a pseudo-terminal of the devpts at /dev/pts of the mount namespace
// that we are in: its name holds there. Nothing in the container can stand in for it: what
// is opened lies directly on a devpts, where nobody can make nodes, and the slave is had
// from the master and not by its name.
func openTerminal() (master, slave int, err error) {
	pts, err := unix.Open("/dev/pts", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("open /dev/pts: %w", err)
	}
	defer unix.Close(pts)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(pts, &fs); err != nil {
		return -1, -1, fmt.Errorf("look at /dev/pts: %w", err)
	}
	if fs.Type != unix.DEVPTS_SUPER_MAGIC {
		return -1, -1, fmt.Errorf("open pseudo-terminal: /dev/pts is not a devpts")
	}
	master, err = openat2(pts, "ptmx", unix.OpenHow{
		Flags:   unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return -1, -1, fmt.Errorf("open pseudo-terminal: %w", err)
	}
	if err = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err == nil {
		slave, err = peer(master)
	}
	if err != nil {
		unix.Close(master)
		return -1, -1, fmt.Errorf("open terminal: %w", err)
	}
	return master, slave, nil
}

// peer opens a master's slave (TIOCGPTPEER, Linux 4.13).
func peer(master int) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// openTerminal makes the container's terminal, puts it on /dev/console, and has the
// launcher hand its master over.
func (s *stdio) openTerminal(ch channel) error {
	if !s.tty {
		return nil
	}
	master, slave, err := openTerminal()
	if err != nil {
		return err
	}
	if slave, err = unix.FcntlInt(uintptr(slave), unix.F_DUPFD_CLOEXEC, firstStdioFD); err != nil {
		return fmt.Errorf("hold terminal: %w", err)
	}
	if err := bindConsole(slave); err != nil {
		return fmt.Errorf("make /dev/console: %w", err)
	}
	s.fds = [3]int{slave, slave, slave}
	err = ch.sendFD(childMessage{Terminal: true}, master)
	unix.Close(master)
	if err != nil || ch.wait() != nil {
		return errLauncherGone
	}
	return nil
}

// bindConsole mounts the terminal on /dev/console, as container runtimes do. A volume may
// lie on /dev: nothing there may lead elsewhere.
func bindConsole(slave int) error {
	dev, err := unix.Open("/dev", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	fd, err := unix.Openat(dev, "console", unix.O_CREAT|unix.O_EXCL|unix.O_RDONLY|unix.O_CLOEXEC, 0o600)
	if err == nil {
		unix.Close(fd)
	} else if !errors.Is(err, unix.EEXIST) {
		return err
	}
	target, err := unix.Openat(dev, "console", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	tree, err := cloneTree(slave, false)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return attach(tree, target)
}

// Times of handOver: the log writer may be just restarting.
const (
	handOverTries = 50
	handOverPause = 100 * time.Millisecond
)

// handOver gives the log writer a container's terminal and returns once it holds it.
func handOver(to *launchspec.Terminal, master int) (err error) {
	defer unix.Close(master)
	for range handOverTries {
		var refused bool
		if refused, err = handOverOnce(to, master); err == nil || refused {
			return err
		}
		time.Sleep(handOverPause)
	}
	return err
}

func handOverOnce(to *launchspec.Terminal, master int) (refused bool, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: to.Socket}); err != nil {
		return false, fmt.Errorf("connect to log writer: %w", err)
	}
	ch := channel{fd: fd}
	if err := ch.sendBytes(append([]byte{launchspec.TerminalPacket}, to.Stream...), master); err != nil {
		return false, fmt.Errorf("hand over terminal: %w", err)
	}
	answer, err := ch.receiveBytes()
	if err != nil {
		return false, fmt.Errorf("hand over terminal: %w", err)
	}
	if answer[0] != launchspec.TerminalTaken {
		return true, fmt.Errorf("hand over terminal: %s", answer[1:])
	}
	return false, nil
}

// ownTerminal makes a terminal our stdio and our session's, and passes its master on.
func ownTerminal(ch channel) error {
	master, slave, err := openTerminal()
	if err != nil {
		return err
	}
	err = ch.sendFD(childMessage{Terminal: true}, master)
	unix.Close(master)
	if err != nil {
		return errLauncherGone
	}
	if err := ch.wait(); err != nil {
		return errLauncherGone
	}
	for fd := range 3 {
		if err := unix.Dup3(slave, fd, 0); err != nil {
			return fmt.Errorf("install stream %d: %w", fd, err)
		}
	}
	return controlTerminal()
}
