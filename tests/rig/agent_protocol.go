package rig

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// agentCommand is the first line a client sends.
type agentCommand struct {
	Argv []string `json:"argv"`
	Env  []string `json:"env"`
}

// A frame is a type byte, a big-endian length of four bytes, and data.
const (
	frameStdin  = 0 // of length 0: the end of stdin
	frameStdout = 1
	frameStderr = 2
	frameExit   = 3 // data is the code in decimal
	frameHello  = 4 // what the agent sends first
)

// frameWriter writes frames of one type; mu is the connection's.
type frameWriter struct {
	mu   *sync.Mutex
	w    io.Writer
	kind byte
}

// Write writes p as one frame.
func (f *frameWriter) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	head := binary.BigEndian.AppendUint32([]byte{f.kind}, uint32(len(p)))
	if _, err := f.w.Write(append(head, p...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// maxFrame bounds what a reader allocates.
const maxFrame = 16 << 20

// readFrame reads one frame.
func readFrame(r io.Reader) (kind byte, data []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("read frame: %d bytes are more than %d", n, maxFrame)
	}
	data = make([]byte, n)
	_, err = io.ReadFull(r, data)
	return head[0], data, err
}
