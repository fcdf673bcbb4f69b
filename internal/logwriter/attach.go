package logwriter

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/logs/logstream"
)

const (
	// maxQueue is how much output a client may be behind before the container waits for it.
	maxQueue = 1 << 20
	// stalled is how long the container waits at most; then the client is cut off.
	stalled = 30 * time.Second
)

// client is one connection to the socket. It has no stream until it has asked for one.
type client struct {
	fd       int
	stream   *stream
	wants    logstream.Attach
	queue    [][]byte
	queued   int
	finished bool   // close it once the queue is empty
	inputEnd bool   // it has ended its input
	events   uint32 // that epoll looks for
}

// serveSocket listens at the socket beside the streams.
func (w *Writer) serveSocket() error {
	path := filepath.Join(w.dir, logstream.Socket)
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	w.socket = fd
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return &os.PathError{Op: "bind", Path: path, Err: err}
	}
	if err := errors.Join(os.Chmod(path, 0o600), unix.Listen(fd, 128)); err != nil {
		return fmt.Errorf("listen at %s: %w", path, err)
	}
	w.handlers[int32(fd)] = func(uint32) { w.accept() }
	return w.poll(unix.EPOLL_CTL_ADD, fd)
}

func (w *Writer) accept() {
	for {
		fd, _, err := unix.Accept4(w.socket, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return
		}
		c := &client{fd: fd, events: unix.EPOLLIN}
		w.handlers[int32(fd)] = func(events uint32) { w.serveClient(c, events) }
		w.clients[c] = struct{}{}
		if w.poll(unix.EPOLL_CTL_ADD, fd) != nil {
			w.hangUp(c)
		}
	}
}

// watchClient sets what epoll looks for.
func (w *Writer) watchClient(c *client, events uint32) {
	if c.fd < 0 || c.events == events {
		return
	}
	c.events = events
	event := unix.EpollEvent{Events: events, Fd: int32(c.fd)}
	_ = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_MOD, c.fd, &event)
}

// listen reads from a client unless the container is behind with its input.
func (w *Writer) listen(c *client) {
	events := uint32(0)
	if c.stream == nil || len(c.stream.input.pending) < maxPending {
		events |= unix.EPOLLIN
	}
	if len(c.queue) > 0 {
		events |= unix.EPOLLOUT
	}
	w.watchClient(c, events)
}

func (w *Writer) serveClient(c *client, events uint32) {
	if events&unix.EPOLLOUT != 0 {
		w.flush(c)
	}
	if c.fd >= 0 && events&unix.EPOLLIN != 0 {
		w.receive(c)
		return
	}
	if c.fd >= 0 && events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		w.hangUp(c)
	}
}

// receive takes one packet.
func (w *Writer) receive(c *client) {
	buf, rights := w.scratch.in[:logstream.MaxPacket], make([]byte, unix.CmsgSpace(4))
	n, oob, _, _, err := unix.Recvmsg(c.fd, buf, rights, unix.MSG_CMSG_CLOEXEC)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return
	}
	if err != nil || n == 0 {
		w.hangUp(c)
		return
	}
	passed := passedFD(rights[:oob])
	if err := w.packet(c, buf[0], buf[1:n], &passed); err != nil {
		w.send(c, append([]byte{logstream.PacketFailed}, err.Error()...))
		w.finish(c)
	}
	if passed >= 0 {
		_ = unix.Close(passed)
	}
}

func passedFD(rights []byte) int {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) == 0 {
		return -1
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return -1
	}
	return fds[0]
}

// packet acts on one packet. It takes the descriptor that came with it by setting it to -1.
func (w *Writer) packet(c *client, kind byte, data []byte, passed *int) error {
	if c.stream == nil {
		switch {
		case kind == logstream.PacketAttach:
			return w.attach(c, data)
		case kind == logstream.PacketTerminal && *passed >= 0:
			return w.takeTerminal(c, string(data), passed)
		}
		return errors.New("that is no request")
	}
	if c.inputEnd {
		return nil
	}
	switch s := c.stream; {
	case kind == logstream.PacketResize && len(data) == 4 && s.terminal != nil:
		return s.terminal.resize(binary.BigEndian.Uint16(data), binary.BigEndian.Uint16(data[2:]))
	case kind == logstream.PacketStdin && c.wants.Stdin:
		s.input.pending = append(s.input.pending, data...)
		w.feed(s)
		w.listen(c)
	case kind == logstream.PacketStdinEnd && c.wants.Stdin:
		w.endInput(c)
	}
	return nil
}

func (w *Writer) attach(c *client, data []byte) error {
	if err := json.Unmarshal(data, &c.wants); err != nil {
		return fmt.Errorf("parse request: %w", err)
	}
	s, ok := w.streams[c.wants.Stream]
	if !ok {
		return errNoStream
	}
	c.wants.Stdin = c.wants.Stdin && s.config.Stdin
	c.stream = s
	s.clients[c] = struct{}{}
	w.send(c, []byte{logstream.PacketOK})
	return nil
}

// takeTerminal answers once systemd holds the terminal as well.
func (w *Writer) takeTerminal(c *client, name string, passed *int) error {
	s, ok := w.streams[name]
	if !ok || !s.config.TTY {
		return errNoStream
	}
	if err := w.adoptTerminal(s, *passed); err != nil {
		return err
	}
	w.notify.keep(terminalName(name), *passed)
	w.notify.barrier()
	*passed = -1
	w.send(c, []byte{logstream.PacketOK})
	w.finish(c)
	return nil
}

// terminalName names a terminal in systemd's store.
func terminalName(stream string) string { return stream + ".terminal" }

// endInput follows a container runtime: stdinOnce closes the stdin of a container without
// a terminal and leaves the client its output; else the end of input detaches the client.
func (w *Writer) endInput(c *client) {
	if c.inputEnd {
		return
	}
	c.inputEnd = true
	s := c.stream
	if s.config.StdinOnce && !s.config.TTY {
		s.input.ending = true
		w.feed(s)
		return
	}
	w.finish(c)
}

// tap gives a stream's output to its clients.
func (w *Writer) tap(s *stream, index int, data []byte) {
	kind := [2]byte{logstream.PacketStdout, logstream.PacketStderr}[index]
	for len(data) > 0 {
		n := min(len(data), logstream.MaxPacket-1)
		packet := append([]byte{kind}, data[:n]...)
		data = data[n:]
		for c := range s.clients {
			if index == 0 && c.wants.Stdout || index == 1 && c.wants.Stderr {
				w.send(c, packet)
			}
		}
	}
}

// send queues a packet, which must not be changed any more.
func (w *Writer) send(c *client, packet []byte) {
	if c.fd < 0 || c.finished {
		return
	}
	c.queue = append(c.queue, packet)
	c.queued += len(packet)
	w.flush(c)
}

// flush sends what the client takes.
func (w *Writer) flush(c *client) {
	for len(c.queue) > 0 && c.fd >= 0 {
		err := unix.Sendto(c.fd, c.queue[0], unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			w.listen(c)
			return
		case err != nil:
			w.hangUp(c)
			return
		}
		c.queued -= len(c.queue[0])
		c.queue = c.queue[1:]
	}
	if c.finished {
		w.hangUp(c)
		return
	}
	if s := c.stream; s != nil && !s.congested() {
		w.release(s)
	}
	w.listen(c)
}

// congested says whether a client is too far behind.
func (s *stream) congested() bool {
	for c := range s.clients {
		if c.queued > maxQueue {
			return true
		}
	}
	return false
}

// hold makes the container wait for its clients.
func (w *Writer) hold(f *fifo) {
	if _, ok := w.paused[f]; !ok {
		_ = w.poll(unix.EPOLL_CTL_DEL, f.fd)
	}
	f.held = true
	w.paused[f] = time.Now().Add(stalled)
}

func (w *Writer) release(s *stream) {
	for _, f := range s.fifos {
		if f.held {
			f.held = false
			w.paused[f] = time.Now()
		}
	}
}

// cut sends the clients away for which a container has waited too long.
func (w *Writer) cut(s *stream) {
	for c := range s.clients {
		if c.queued > maxQueue {
			slog.Warn("an attached client does not read; cutting it off", "uid", s.config.PodUID, "container", s.config.Container)
			w.hangUp(c)
		}
	}
}

// finish closes a client once it has everything.
func (w *Writer) finish(c *client) {
	c.finished = true
	if s := c.stream; s != nil {
		delete(s.clients, c)
	}
	w.flush(c)
}

// hangUp forgets a client.
func (w *Writer) hangUp(c *client) {
	if c.fd < 0 {
		return
	}
	s := c.stream
	_ = w.poll(unix.EPOLL_CTL_DEL, c.fd)
	delete(w.handlers, int32(c.fd))
	delete(w.clients, c)
	_ = unix.Close(c.fd)
	c.fd = -1
	if s == nil {
		return
	}
	delete(s.clients, c)
	if c.wants.Stdin && !c.inputEnd && w.streams[s.name] == s {
		w.endInput(c)
	}
	if !s.congested() {
		w.release(s)
	}
}
