package apiclient

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

type testServer struct {
	*httptest.Server
	hits atomic.Int32
}

func newServer(t *testing.T, name string) *testServer {
	s := &testServer{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.hits.Add(1)
		body, _ := io.ReadAll(r.Body)
		_, _ = io.WriteString(w, name+":"+string(body))
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func client(t *testing.T, trusted *testServer, urls ...string) *http.Client {
	pool := x509.NewCertPool()
	pool.AddCert(trusted.Certificate()) // httptest's servers share one certificate
	f, err := NewFailover(urls, &tls.Config{RootCAs: pool, NextProtos: []string{"h2"}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.CloseConnections)
	return &http.Client{Transport: f}
}

func do(t *testing.T, c *http.Client, method, url, body string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	return string(got), err
}

func TestFailoverMovesAndStays(t *testing.T) {
	a, b := newServer(t, "a"), newServer(t, "b")
	c := client(t, a, a.URL, b.URL)
	if got, err := do(t, c, "POST", a.URL, "1"); err != nil || got != "a:1" {
		t.Fatalf("first server: %q, %v", got, err)
	}
	a.Close()
	// The cut connection may fail this request after it was written: a POST is then the caller's to repeat.
	if _, err := do(t, c, "GET", a.URL, ""); err != nil {
		t.Fatalf("GET after the first server went: %v", err)
	}
	if got, err := do(t, c, "POST", a.URL, "2"); err != nil || got != "b:2" {
		t.Fatalf("POST after the move: %q, %v", got, err)
	}
}

func TestFailoverRepeatsUnsentBody(t *testing.T) {
	b := newServer(t, "b")
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	deadURL := "https://" + dead.Addr().String()
	dead.Close()
	c := client(t, b, deadURL, b.URL)
	if got, err := do(t, c, "POST", deadURL, "body"); err != nil || got != "b:body" {
		t.Fatalf("POST = %q, %v", got, err)
	}
	if n := b.hits.Load(); n != 1 {
		t.Errorf("server was asked %d times", n)
	}
}

// Without a certificate nothing is asked, as nobody: neither before the first nor after the
// end of the last.
func TestNoCertificateNoRequest(t *testing.T) {
	a := newServer(t, "a")
	pool := x509.NewCertPool()
	pool.AddCert(a.Certificate())
	var certificate atomic.Pointer[tls.Certificate]
	c, err := New(Options{Servers: []string{a.URL}, CA: pool, Certificate: certificate.Load, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseConnections)
	client := &http.Client{Transport: c.RESTConfig().Transport}
	for _, want := range []int32{0, 1, 1} {
		_, err := do(t, client, "POST", a.URL, "x")
		if none := certificate.Load() == nil; none != errors.Is(err, ErrNoCertificate) || a.hits.Load() != want {
			t.Errorf("asked %d times, want %d: %v", a.hits.Load(), want, err)
		}
		if certificate.Load() == nil {
			certificate.Store(&a.TLS.Certificates[0])
		} else {
			certificate.Store(nil)
		}
	}
}

func TestFailoverAllDead(t *testing.T) {
	b := newServer(t, "b")
	b.Close()
	c := client(t, b, b.URL, b.URL+"0")
	if _, err := do(t, c, "GET", b.URL, ""); err == nil {
		t.Fatal("no error")
	}
}

func TestFailoverDoesNotRepeatSentWrites(t *testing.T) {
	var hits atomic.Int32
	a := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		hits.Add(1)
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(a.Close)
	b := newServer(t, "b")
	c := client(t, b, a.URL, b.URL)
	if got, err := do(t, c, "POST", a.URL, "x"); err == nil {
		t.Fatalf("POST = %q, want the error of the aborted request", got)
	}
	if hits.Load() != 1 || b.hits.Load() != 0 {
		t.Errorf("hits %d and %d, want 1 and 0", hits.Load(), b.hits.Load())
	}
	if got, err := do(t, c, "POST", a.URL, "y"); err != nil || got != "b:y" {
		t.Errorf("next POST = %q, %v", got, err)
	}
}

// A server whose machine vanished answers nothing: no RST, no FIN. The connection must be
// given up by ping, and the next server asked.
func TestFailoverNoticesSilence(t *testing.T) {
	a, b := newServer(t, "a"), newServer(t, "b")
	proxy := newStallingProxy(t, strings.TrimPrefix(a.URL, "https://"))
	c := client(t, a, "https://"+proxy.addr(), b.URL)
	if got, err := do(t, c, "GET", a.URL, ""); err != nil || got != "a:" {
		t.Fatalf("through the proxy: %q, %v", got, err)
	}
	proxy.stalled.Store(true)
	got, err := do(t, c, "GET", a.URL, "")
	if err != nil || got != "b:" {
		t.Fatalf("GET = %q, %v", got, err)
	}
}

type stallingProxy struct {
	net.Listener
	target  string
	stalled atomic.Bool
}

func newStallingProxy(t *testing.T, target string) *stallingProxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &stallingProxy{Listener: l, target: target}
	t.Cleanup(func() { l.Close() })
	go p.serve()
	return p
}

func (p *stallingProxy) addr() string { return p.Addr().String() }

func (p *stallingProxy) serve() {
	for {
		conn, err := p.Accept()
		if err != nil {
			return
		}
		up, err := net.Dial("tcp", p.target)
		if err != nil {
			conn.Close()
			continue
		}
		go p.copy(up, conn)
		go p.copy(conn, up)
	}
}

func (p *stallingProxy) copy(dst, src net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				dst.Close()
			}
			return
		}
		if !p.stalled.Load() {
			_, _ = dst.Write(buf[:n])
		}
	}
}
