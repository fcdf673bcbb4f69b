package probes

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// handOver lets net/http go on with the connection and with what has come by it, in a
// goroutine of its own: for what a call does not do, and for what is slow or large. rest is what is
// still to be sent.
func (c *call) handOver(rest []byte) {
	file := os.NewFile(uintptr(c.fd), "probe")
	c.fd = -1
	go func() {
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			c.done(outcome{result: failure, output: fmt.Sprintf("probe %s: %v", c.route.at, err)}, nil)
			return
		}
		client := http.Client{
			Timeout: max(time.Until(c.deadline), 1), CheckRedirect: checkRedirect,
			Transport: &begun{RoundTripper: httpTransport, conn: conn, got: c.got, rest: rest},
		}
		c.done(fetch(&client, c.route.request))
	}()
}

// begun is a transport whose first request has been sent already, but for the rest.
type begun struct {
	http.RoundTripper // for redirects
	conn              net.Conn
	got, rest         []byte
}

// RoundTrip implements http.RoundTripper. Requests come one after the other.
func (b *begun) RoundTrip(req *http.Request) (*http.Response, error) {
	if b.conn == nil {
		return b.RoundTripper.RoundTrip(req)
	}
	conn := b.conn
	b.conn = nil
	return over(conn, req, func() (*http.Response, error) {
		if _, err := conn.Write(b.rest); err != nil {
			return nil, err
		}
		return answer(io.MultiReader(bytes.NewReader(b.got), conn), req)
	})
}
