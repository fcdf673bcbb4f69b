package rig

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// askAgent runs a command through a virtual machine's agent and returns its exit code.
func (m *Machine) askAgent(ctx context.Context, c Command) (int, error) {
	conn, err := m.dialAgent()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := awaitHello(conn); err != nil {
		return 0, err
	}
	line, err := json.Marshal(agentCommand{Argv: c.inDir(), Env: c.Env})
	if err != nil {
		return 0, err
	}
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return 0, fmt.Errorf("send command: %w", err)
	}
	go sendStdin(conn, c.Stdin)
	return receive(conn, c)
}

// helloTimeout bounds the wait for an agent: QEMU accepts connections before there is one.
const helloTimeout = 10 * time.Second

// awaitHello waits until the agent itself answers.
func awaitHello(conn net.Conn) error {
	if err := conn.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	kind, _, err := readFrame(conn)
	if err == nil && kind != frameHello {
		err = fmt.Errorf("frame of type %d is no greeting", kind)
	}
	if err != nil {
		return fmt.Errorf("wait for the agent: %w", err)
	}
	return conn.SetReadDeadline(time.Time{})
}

// sendStdin sends stdin and its end.
func sendStdin(conn net.Conn, stdin io.Reader) {
	w := &frameWriter{&sync.Mutex{}, conn, frameStdin}
	if stdin != nil {
		if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{stdin}, make([]byte, 256<<10)); err != nil {
			return
		}
	}
	_, _ = w.Write(nil) // the receiver sees a broken connection
}

// receive passes the command's streams on and returns its code.
func receive(conn net.Conn, c Command) (int, error) {
	in := bufio.NewReader(conn)
	for {
		kind, data, err := readFrame(in)
		if err != nil {
			return 0, fmt.Errorf("read from agent: %w", err)
		}
		var w io.Writer
		switch kind {
		case frameStdout:
			w = c.Stdout
		case frameStderr:
			w = c.Stderr
		case frameExit:
			var code int
			_, err := fmt.Sscan(string(data), &code)
			return code, err
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(data); err != nil {
			return 0, err
		}
	}
}

// dialAgent connects to the agent through QEMU's forwarded port, which is on the loopback
// interface of the rack's namespace.
func (m *Machine) dialAgent() (net.Conn, error) {
	s, err := readState(m.rig.dir)
	if err != nil {
		return nil, err
	}
	rs, err := s.rack(m.Rack)
	if err != nil {
		return nil, err
	}
	var conn net.Conn
	err = inNetns(rs.NetnsPath, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "agent")
		defer f.Close()
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: m.agentPort(), Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return err
		}
		conn, err = net.FileConn(f)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connect to the agent: %w", err)
	}
	return conn, nil
}

// agentPort is the forwarded port, unique in the rack.
func (m *Machine) agentPort() int {
	b := m.V4.As4()
	return 20000 + int(b[2])<<8&0x3f00 + int(b[3])
}
