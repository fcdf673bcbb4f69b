package kubeletapi

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"sync"
)

// hangup ends a context once the client's connection is gone. net/http does not: from the
// upgrade on it no longer looks at the connection.
type hangup struct {
	http.ResponseWriter
	gone context.CancelFunc
}

// untilHangup returns w and r for a stream server. The request's context ends with the
// client's connection; cancel releases it.
func untilHangup(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, *http.Request, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.Context())
	return &hangup{ResponseWriter: w, gone: cancel}, r.WithContext(ctx), cancel
}

// Hijack implements http.Hijacker.
func (h *hangup) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	watched := &watchedConn{Conn: conn, gone: h.gone, chunks: make(chan chunk, readAhead), closed: make(chan struct{})}
	// What the server has read ahead belongs to the stream.
	ahead, _ := buffered.Peek(buffered.Reader.Buffered())
	watched.rest = append([]byte(nil), ahead...)
	go watched.pump()
	return watched, bufio.NewReadWriter(bufio.NewReader(watched), bufio.NewWriter(watched)), nil
}

// Unwrap is for http.ResponseController.
func (h *hangup) Unwrap() http.ResponseWriter { return h.ResponseWriter }

// readAhead is how many chunks are read before anybody asks for them.
const readAhead = 8

type chunk struct {
	data []byte
	err  error
}

// watchedConn reads by itself and tells when that fails: the client is gone. The SPDY
// server stops reading at the client's GOAWAY and would never see the end.
type watchedConn struct {
	net.Conn
	gone   context.CancelFunc
	chunks chan chunk
	rest   []byte
	err    error
	closed chan struct{}
	once   sync.Once
}

func (c *watchedConn) pump() {
	for {
		buf := make([]byte, 16<<10)
		n, err := c.Conn.Read(buf)
		if err != nil {
			c.gone()
		}
		select {
		case c.chunks <- chunk{buf[:n], err}:
		case <-c.closed:
			return
		}
		if err != nil {
			return
		}
	}
}

// Read implements net.Conn.
func (c *watchedConn) Read(p []byte) (int, error) {
	for len(c.rest) == 0 && c.err == nil {
		select {
		case next := <-c.chunks:
			c.rest, c.err = next.data, next.err
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
	if len(c.rest) == 0 {
		return 0, c.err
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Close implements net.Conn.
func (c *watchedConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
