package logwriter

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/logs/logstream"
)

// notifier speaks sd_notify(3). Without NOTIFY_SOCKET every call does nothing.
type notifier struct {
	fd       int
	watchdog time.Duration // 0: none is wanted
}

func newNotifier() *notifier {
	n := &notifier{fd: -1}
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return n
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return n
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		_ = unix.Close(fd)
		return n
	}
	n.fd = fd
	if usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64); err == nil {
		n.watchdog = time.Duration(usec) * time.Microsecond
	}
	return n
}

func (n *notifier) send(message string, fds ...int) {
	if n.fd < 0 {
		return
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_ = unix.Sendmsg(n.fd, []byte(message), rights, nil, 0)
}

// storeName names a FIFO's descriptor in systemd's store (at most 255 characters).
func storeName(stream string, index int) string { return stream + "." + streamNames[index] }

// store hands a FIFO to systemd, which gives it back to the next writer. FDPOLL=0: by
// default systemd closes a pipe whose writers have gone, and with it what it holds.
func (n *notifier) store(stream string, index, fd int) { n.keep(storeName(stream, index), fd) }

func (n *notifier) keep(name string, fd int) { n.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fd) }

// barrierTimeout bounds barrier: systemd answers in milliseconds unless it is reloading.
const barrierTimeout = 5 * time.Second

// barrier returns once systemd has acted on everything sent before, or it takes too long.
func (n *notifier) barrier() {
	if n.fd < 0 {
		return
	}
	var pipe [2]int
	if unix.Pipe2(pipe[:], unix.O_CLOEXEC) != nil {
		return
	}
	n.send("BARRIER=1", pipe[1])
	_ = unix.Close(pipe[1])
	fds := []unix.PollFd{{Fd: int32(pipe[0])}}
	deadline := time.Now().Add(barrierTimeout)
	for {
		_, err := unix.Poll(fds, max(0, int(time.Until(deadline).Milliseconds())))
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	_ = unix.Close(pipe[0])
}

func (n *notifier) forget(stream string) {
	for i := range streamNames {
		n.send("FDSTOREREMOVE=1\nFDNAME=" + storeName(stream, i))
	}
	for _, name := range []string{terminalName(stream), stream + "." + logstream.StdinFIFO} {
		n.send("FDSTOREREMOVE=1\nFDNAME=" + name)
	}
}

// inheritedFDs are the descriptors that systemd passed on, by name (sd_listen_fds(3)).
func inheritedFDs() map[string]int {
	fds := map[string]int{}
	pid, err1 := strconv.Atoi(os.Getenv("LISTEN_PID"))
	count, err2 := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err1 != nil || err2 != nil || pid != os.Getpid() {
		return fds
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	const first = 3
	for i := range count {
		fd := first + i
		unix.CloseOnExec(fd)
		if i < len(names) {
			if old, ok := fds[names[i]]; ok {
				_ = unix.Close(old)
			}
			fds[names[i]] = fd
		}
	}
	return fds
}
