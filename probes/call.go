package probes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// maxReads bounds how often an answer is looked at before it is whole. One that comes in
// more pieces is left to net/http.
const maxReads = 8

// call is one run of a tcp or http probe over a socket that never blocks. A round takes
// it from one step to the next: connect, send, receive.
type call struct {
	route    *route
	timeout  time.Duration
	done     func(outcome, error) // called once, and never for long
	deadline time.Time

	fd        int // -1 before and after
	connected bool
	got       []byte // of the answer, which is not whole
	reads     int
	headed    bool // the answer's head has come
	written   error
}

// newCall makes no system call yet.
func newCall(r *route, timeout time.Duration, done func(outcome, error)) *call {
	return &call{route: r, timeout: timeout, done: done, fd: -1}
}

func (c *call) over() bool { return c.fd < 0 }

// end closes the connection. The other end gets what it would from net.Conn's Close: a
// reset if some of its answer was not read, else FIN. A kubelet sets SO_LINGER to 1 s for less
// of TIME-WAIT: Linux has 60 s of it nonetheless, and close(2) would wait for the other end.
func (c *call) end(o outcome, err error) {
	_ = unix.Close(c.fd)
	c.fd = -1
	c.done(o, err)
}

// fail ends the call; a try that failed is a failed probe.
func (c *call) fail(err error) {
	if c.route.request != nil {
		err = &url.Error{Op: "Get", URL: c.route.request.URL.String(), Err: err}
	}
	c.end(outcome{result: failure, output: err.Error()}, nil)
}

// start makes the socket and goes as far as it can.
func (c *call) start(s *scratch) {
	c.deadline = time.Now().Add(c.timeout)
	fd, err := c.route.socket()
	if err != nil {
		c.fail(c.opError("dial", os.NewSyscallError("socket", err)))
		return
	}
	c.fd = fd
	_ = unix.Connect(fd, c.route.to) // advance hears of it
	c.advance(s)
}

// advance does what can be done at once. It returns the events of epoll(7) to wait for
// then, or 0 if the call is over.
func (c *call) advance(s *scratch) (events uint32) {
	if !c.connected {
		// Asked again, connect(2) says how it went: over a pod's own link the handshake
		// is done by the time that the first call returns.
		switch err := unix.Connect(c.fd, c.route.to); err {
		case nil, unix.EISCONN:
			return c.established(s)
		case unix.EINPROGRESS, unix.EALREADY, unix.EINTR:
			return unix.EPOLLOUT
		default:
			c.fail(c.opError("dial", os.NewSyscallError("connect", err)))
			return 0
		}
	}
	return c.receive(s)
}

func (c *call) established(s *scratch) uint32 {
	c.connected = true
	switch {
	case localOf(c.fd) == c.route.at:
		// TCP's simultaneous open with itself: the port was ours, so nobody listens on it.
		c.fail(c.opError("dial", os.NewSyscallError("connect", unix.ECONNREFUSED)))
		return 0
	case c.route.request == nil:
		c.end(outcome{result: success}, nil)
		return 0
	}
	return c.send(s)
}

func (c *call) send(s *scratch) uint32 {
	n, err := unix.Write(c.fd, c.route.wire)
	switch {
	case err == nil && n == len(c.route.wire):
		return unix.EPOLLIN
	case err == nil || err == unix.EAGAIN || err == unix.EINTR:
		c.handOver(c.route.wire[max(n, 0):])
		return 0
	}
	// The answer may have come before it was asked for.
	c.written = c.opError("write", os.NewSyscallError("write", err))
	return c.receive(s)
}

// receive reads once: what is left wakes the round again.
func (c *call) receive(s *scratch) uint32 {
	n, err := unix.Read(c.fd, s.memory())
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return unix.EPOLLIN
	}
	if err != nil {
		err = c.opError("read", os.NewSyscallError("read", err))
		if c.written != nil {
			err = c.written
		}
		n = 0
	}
	data := s.buf[:n]
	if len(c.got) > 0 {
		c.got = append(c.got, data...)
		data = c.got
	}
	return c.read(s, data, err, err == nil && n == 0)
}

// read looks at what has come of the answer. broken says that nothing more will come, for a bad reason.
func (c *call) read(s *scratch, data []byte, broken error, eof bool) uint32 {
	source := &received{data: data, end: errMore}
	switch {
	case broken != nil:
		source.end = broken
	case eof && c.written != nil:
		source.end = c.written
	case eof:
		source.end = io.EOF
	}
	res, body, err := s.parse(source, c.route.request) //nolint:bodyclose // parse has closed it
	c.headed = res != nil
	switch {
	case err != nil && source.short():
		return c.wait(data)
	case res == nil && len(data) > 0:
		c.fail(fmt.Errorf("net/http: HTTP/1.x transport connection broken: %w", err))
	case res == nil:
		c.fail(source.end)
	case redirects(res):
		c.got = append([]byte(nil), data...)
		c.handOver(nil)
	default:
		o, err := judge(res, body, err)
		c.end(o, err)
	}
	return 0
}

// wait keeps what there is of an answer until more has come.
func (c *call) wait(data []byte) uint32 {
	if len(c.got) == 0 {
		c.got = append([]byte(nil), data...)
	}
	if c.reads++; c.reads >= maxReads {
		c.handOver(nil)
		return 0
	}
	return unix.EPOLLIN
}

// expire ends a call whose time is over, in net/http's words.
func (c *call) expire() {
	switch {
	case c.route.request == nil:
		c.fail(c.opError("dial", os.ErrDeadlineExceeded))
	case !c.connected:
		c.fail(fmt.Errorf("%w (Client.Timeout exceeded while awaiting headers)", c.opError("dial", os.ErrDeadlineExceeded)))
	case !c.headed:
		c.fail(fmt.Errorf("%w (Client.Timeout exceeded while awaiting headers)", context.DeadlineExceeded))
	default:
		c.end(outcome{result: failure}, fmt.Errorf("%w (Client.Timeout or context cancellation while reading body)", context.DeadlineExceeded))
	}
}

// opError names the addresses as package net does.
func (c *call) opError(op string, err error) error {
	e := &net.OpError{Op: op, Net: "tcp", Addr: net.TCPAddrFromAddrPort(c.route.at), Err: err}
	if op != "dial" {
		e.Source = net.TCPAddrFromAddrPort(localOf(c.fd))
	}
	return e
}
