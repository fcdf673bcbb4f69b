package logs

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/internal/logs/logstream"
	"github.com/vk-metal/vk-metal/internal/paths"
)

// Size is a terminal's size in characters.
type Size struct{ Width, Height uint16 }

// AttachOptions are the client's ends; nil leaves one out.
type AttachOptions struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan Size
}

// StdinPath is the FIFO that a container with stdin and no terminal reads.
func StdinPath(layout paths.Layout, uid, container string, attempt int) string {
	return filepath.Join(layout.LogStream(uid, container, attempt), logstream.StdinFIFO)
}

// TerminalOf says where an attempt's launcher hands its terminal over.
func TerminalOf(layout paths.Layout, uid, container string, attempt int) launchspec.Terminal {
	return launchspec.Terminal{
		Socket: filepath.Join(layout.LogStreams(), logstream.Socket),
		Stream: filepath.Base(layout.LogStream(uid, container, attempt)),
	}
}

// Attach joins a client to a container's streams: output from now on, until the container
// has ended, the client's input has (unless stdinOnce leaves it the output), or ctx does.
// The reader given as Stdin may be read until it ends, even after Attach has returned.
func Attach(ctx context.Context, layout paths.Layout, uid, container string, attempt int, o AttachOptions) error {
	to := TerminalOf(layout, uid, container, attempt)
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: to.Socket, Net: "unixpacket"})
	if err != nil {
		return fmt.Errorf("attach to %s: %w", to.Stream, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	a := &attachment{conn: conn, o: o}
	if err = a.ask(to.Stream); err == nil {
		done := make(chan struct{})
		defer close(done)
		go a.send(done)
		err = a.receive()
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("attach to %s: %w", to.Stream, err)
	}
	return nil
}

type attachment struct {
	conn *net.UnixConn
	o    AttachOptions
}

func (a *attachment) ask(stream string) error {
	data, err := json.Marshal(logstream.Attach{
		Stream: stream, Stdin: a.o.Stdin != nil, Stdout: a.o.Stdout != nil, Stderr: a.o.Stderr != nil,
	})
	if err != nil {
		return err
	}
	if _, err := a.conn.Write(append([]byte{logstream.PacketAttach}, data...)); err != nil {
		return err
	}
	buf := make([]byte, logstream.MaxPacket)
	n, err := a.conn.Read(buf)
	switch {
	case err != nil:
		return err
	case n == 0 || buf[0] != logstream.PacketOK:
		return errors.New(string(buf[min(1, n):n]))
	}
	return nil
}

// send passes input and sizes on.
func (a *attachment) send(done <-chan struct{}) {
	if a.o.Stdin != nil {
		go a.sendInput()
	}
	for {
		select {
		case <-done:
			return
		case size, ok := <-a.o.Resize:
			if !ok {
				return
			}
			packet := []byte{logstream.PacketResize}
			packet = binary.BigEndian.AppendUint16(packet, size.Width)
			packet = binary.BigEndian.AppendUint16(packet, size.Height)
			_, _ = a.conn.Write(packet) // its failure is the receiver's as well
		}
	}
}

func (a *attachment) sendInput() {
	buf := make([]byte, logstream.MaxPacket)
	for {
		n, err := a.o.Stdin.Read(buf[1:])
		if n > 0 {
			buf[0] = logstream.PacketStdin
			if _, err := a.conn.Write(buf[:n+1]); err != nil {
				return
			}
		}
		if err != nil {
			_, _ = a.conn.Write([]byte{logstream.PacketStdinEnd})
			return
		}
	}
}

// receive copies output until the other side has said everything.
func (a *attachment) receive() error {
	buf := make([]byte, logstream.MaxPacket)
	for {
		n, err := a.conn.Read(buf)
		switch {
		case errors.Is(err, io.EOF) || err == nil && n == 0:
			return nil
		case errors.Is(err, os.ErrClosed):
			return nil
		case err != nil:
			return err
		}
		to := a.o.Stdout
		if buf[0] == logstream.PacketStderr {
			to = a.o.Stderr
		}
		if to == nil {
			continue
		}
		if _, err := to.Write(buf[1:n]); err != nil {
			return fmt.Errorf("pass output on: %w", err)
		}
	}
}
