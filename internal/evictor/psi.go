package evictor

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// stallTrigger asks for an event when tasks have waited 150 ms for memory within two seconds,
// which is when the kernel has to work for each page (Documentation/accounting/psi.rst). Windows
// of two seconds need no CAP_SYS_RESOURCE; there is one event in each at most.
const stallTrigger = "some 150000 2000000"

// PressureFile is the server's own, with every version of cgroups. A kernel without PSI
// (CONFIG_PSI, psi=1 on RHEL) has none.
const PressureFile = "/proc/pressure/memory"

// Stalls watches a memory pressure file. Its channel has an element when tasks had to wait for memory
// since it was last emptied. It ends with ctx.
func Stalls(ctx context.Context, path string) (<-chan struct{}, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("watch memory pressure: open %s: %w", path, err)
	}
	if _, err := unix.Write(fd, append([]byte(stallTrigger), 0)); err != nil {
		return nil, errors.Join(fmt.Errorf("watch memory pressure: set a trigger on %s: %w", path, err), unix.Close(fd))
	}
	over, end, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch memory pressure: %w", err), unix.Close(fd))
	}
	context.AfterFunc(ctx, func() { _ = end.Close() })
	stalls := make(chan struct{}, 1)
	go func() {
		defer unix.Close(fd)
		defer over.Close()
		for pressed(fd, int(over.Fd())) {
			select {
			case stalls <- struct{}{}:
			default:
			}
		}
	}()
	return stalls, nil
}

// pressed waits for an event; it is false when the watch is over: the other end of the pipe
// is closed.
func pressed(fd, over int) bool {
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}, {Fd: int32(over)}}
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil, fds[1].Revents != 0, fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0:
			return false
		}
		return true
	}
}
