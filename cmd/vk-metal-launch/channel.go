//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// childMessage is what the child says: it is built and waits (Process set), it has opened
// a terminal and waits (Terminal set, the master comes along), or it failed. End of file
// means that execve succeeded: the child's end is close-on-exec.
type childMessage struct {
	Process  *launchspec.Process    `json:"process,omitempty"`
	Terminal bool                   `json:"terminal,omitempty"`
	Error    *launchspec.StartError `json:"error,omitempty"`

	// fd is the descriptor that came with the message, -1 for none.
	fd int
}

// channel joins the launcher and its child: SOCK_SEQPACKET keeps messages apart.
type channel struct{ fd int }

const maxMessage = 256 << 10

func newChannels() (parent, child channel, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return channel{-1}, channel{-1}, fmt.Errorf("make channel: %w", err)
	}
	return channel{fds[0]}, channel{fds[1]}, nil
}

func (c channel) send(message childMessage) error { return c.sendJSON(message) }

func (c channel) sendJSON(message any) error {
	data, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	return c.sendBytes(data)
}

func (c channel) sendBytes(data []byte, fds ...int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(c.fd, data, rights, nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return err
		}
	}
}

// sendFD sends a message and a descriptor, which stays open here.
func (c channel) sendFD(message any, fd int) error {
	data, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	return c.sendBytes(data, fd)
}

// receive returns io.EOF once the other side is gone.
func (c channel) receive() (childMessage, error) {
	message := childMessage{fd: -1}
	data, fd, err := c.receiveFD()
	if err != nil {
		return message, err
	}
	message.fd = fd
	if err := json.Unmarshal(data, &message); err != nil {
		return message, fmt.Errorf("parse message: %w", err)
	}
	return message, nil
}

func (c channel) receiveBytes() ([]byte, error) {
	data, fd, err := c.receiveFD()
	if fd >= 0 {
		unix.Close(fd)
	}
	return data, err
}

// receiveFD returns a message and the descriptor that came with it, -1 for none.
func (c channel) receiveFD() ([]byte, int, error) {
	buf := make([]byte, maxMessage)
	rights := make([]byte, unix.CmsgSpace(4))
	for {
		n, oob, _, _, err := unix.Recvmsg(c.fd, buf, rights, unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, -1, fmt.Errorf("read channel: %w", err)
		case n == 0:
			return nil, -1, io.EOF
		}
		return buf[:n], passedFD(rights[:oob]), nil
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

// wait blocks until the launcher lets the child go on. Anything but a byte means that
// the launcher is gone, and the child must not start then.
func (c channel) wait() error {
	if _, err := c.receiveBytes(); err != nil {
		return fmt.Errorf("wait for launcher: %w", err)
	}
	return nil
}

func (c channel) release() error { return c.sendBytes([]byte{'g'}) }
