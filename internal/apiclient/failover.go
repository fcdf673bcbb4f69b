package apiclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"k8s.io/client-go/util/connrotation"
)

// How soon a server that went silent is noticed: an idle connection is pinged after
// pingAfter and given up pingTimeout later; a new one has dialTimeout.
const (
	dialTimeout = 3 * time.Second
	pingAfter   = 4 * time.Second
	pingTimeout = 4 * time.Second
)

// Failover is an http.RoundTripper that sends every request to one API server and moves
// to the next when that one cannot be reached. It stays with the new one.
type Failover struct {
	log     *slog.Logger
	base    *http.Transport
	servers []string // host:port
	conns   map[string]*connrotation.Dialer
	current atomic.Int32
}

// NewFailover makes a Failover over https URLs with a host and port. tlsConfig has no
// ServerName: each server is verified by the host of its own URL.
func NewFailover(servers []string, tlsConfig *tls.Config, log *slog.Logger) (*Failover, error) {
	if len(servers) == 0 {
		return nil, errors.New("connect to the API server: none is configured")
	}
	f := &Failover{log: log, conns: map[string]*connrotation.Dialer{}}
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
	for _, server := range servers {
		u, err := url.Parse(server)
		if err != nil || u.Scheme != "https" || u.Port() == "" {
			return nil, fmt.Errorf("connect to the API server: %q is not https://host:port", server)
		}
		f.servers = append(f.servers, u.Host)
		f.conns[u.Host] = connrotation.NewDialer(dialer.DialContext)
	}
	f.base = &http.Transport{
		TLSClientConfig:     tlsConfig,
		DialContext:         f.dial,
		ForceAttemptHTTP2:   true,
		TLSHandshakeTimeout: 2 * dialTimeout,
		IdleConnTimeout:     90 * time.Second,
		MaxIdleConnsPerHost: 25,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: pingAfter, PingTimeout: pingTimeout, WriteByteTimeout: pingAfter + pingTimeout,
		},
	}
	return f, nil
}

// dialError is a failure before any byte of a request was sent.
type dialError struct{ error }

func (e dialError) Unwrap() error { return e.error }

func (f *Failover) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := f.conns[address].DialContext(ctx, network, address)
	if err != nil {
		return nil, dialError{err}
	}
	return conn, nil
}

// RoundTrip implements http.RoundTripper. A request that certainly was not sent, or that only
// reads, is tried once at every server; any other fails after the move and is its caller's to repeat.
func (f *Failover) RoundTrip(req *http.Request) (*http.Response, error) {
	for tries := 1; ; tries++ {
		at := f.current.Load()
		attempt, err := redirect(req, f.servers[at], tries > 1)
		if err != nil {
			return nil, err
		}
		resp, err := f.base.RoundTrip(attempt)
		if err == nil || req.Context().Err() != nil {
			return resp, err
		}
		f.moveOn(at, err)
		if tries >= len(f.servers) || !repeatable(req, err) {
			return nil, err
		}
	}
}

// CloseIdleConnections lets http.Client.CloseIdleConnections reach the transport.
func (f *Failover) CloseIdleConnections() { f.base.CloseIdleConnections() }

// CloseConnections ends every connection: the next request makes a new one, with the
// newest client certificate.
func (f *Failover) CloseConnections() {
	f.base.CloseIdleConnections()
	for _, conns := range f.conns {
		conns.CloseAll()
	}
}

// Current is the host:port in use.
func (f *Failover) Current() string { return f.servers[f.current.Load()] }

// moveOn leaves the server that failed, unless somebody else already did, and ends its connections.
func (f *Failover) moveOn(from int32, cause error) {
	next := (from + 1) % int32(len(f.servers))
	if next == from || !f.current.CompareAndSwap(from, next) {
		return
	}
	f.log.Warn("API server cannot be reached, trying the next", "server", f.servers[from], "next", f.servers[next], "err", cause)
	f.base.CloseIdleConnections()
	f.conns[f.servers[from]].CloseAll()
}

// redirect clones req for another server; again says that its body was read before.
func redirect(req *http.Request, host string, again bool) (*http.Request, error) {
	clone := req.Clone(req.Context())
	clone.URL.Host = host
	clone.Host = ""
	if again && req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			return nil, fmt.Errorf("repeat the request's body: %w", err)
		}
		clone.Body = body
	}
	return clone, nil
}

func repeatable(req *http.Request, err error) bool {
	if req.Body != nil && req.Body != http.NoBody && req.GetBody == nil {
		return false
	}
	return neverSent(err) || req.Method == http.MethodGet || req.Method == http.MethodHead
}

// neverSent says that the connection was refused or its handshake failed.
func neverSent(err error) bool {
	var dial dialError
	var verification *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	return errors.As(err, &dial) || errors.As(err, &verification) || errors.As(err, &record) || errors.As(err, &alert)
}
