package probes

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// userAgent names the version whose behaviour we follow.
const userAgent = "kube-probe/1.35"

// dialer does without keep-alive: no connection lives long enough for it.
var dialer = &net.Dialer{KeepAlive: -1}

// httpTransport uses no proxy, no connection twice, and does not verify certificates.
var httpTransport http.RoundTripper = &transport{tls: &http.Transport{
	TLSClientConfig:    &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // as a kubelet: the probe asks whether it answers, not who
	DisableKeepAlives:  true,
	DisableCompression: true,
	ForceAttemptHTTP2:  true,
	DialContext:        dialer.DialContext,
}}

// probeHTTP sends a GET request by net/http. Redirects are followed on the same host only;
// another host is a success with a warning.
func probeHTTP(ctx context.Context, spec *corev1.Probe, target Target) (outcome, error) {
	req, err := newRequest(ctx, spec.HTTPGet, target, userAgent)
	if err != nil {
		return outcome{}, err
	}
	return fetch(&http.Client{Timeout: timeout(spec), Transport: httpTransport, CheckRedirect: checkRedirect}, req)
}

func fetch(client *http.Client, req *http.Request) (outcome, error) {
	res, err := client.Do(req)
	if err != nil {
		return outcome{result: failure, output: err.Error()}, nil
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxOutput))
	return judge(res, body, err)
}

func checkRedirect(req *http.Request, via []*http.Request) error {
	if req.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	return nil
}

func newRequest(ctx context.Context, get *corev1.HTTPGetAction, target Target, agent string) (*http.Request, error) {
	port, err := resolvePort(get.Port, target.Container)
	if err != nil {
		return nil, err
	}
	at, err := url.Parse(get.Path)
	if err != nil {
		at = &url.URL{Path: get.Path} // passed on as it is, as a kubelet does
	}
	at.Scheme = strings.ToLower(string(get.Scheme))
	if at.Scheme == "" {
		at.Scheme = "http"
	}
	at.Host = address(get.Host, target.PodIP, port)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, h := range get.HTTPHeaders {
		req.Header.Add(h.Name, h.Value)
	}
	setDefaults(req.Header, agent)
	req.Host = req.Header.Get("Host")
	return req, nil
}

func setDefaults(headers http.Header, agent string) {
	if _, ok := headers["User-Agent"]; !ok {
		headers.Set("User-Agent", agent)
	}
	if _, ok := headers["Accept"]; !ok {
		headers.Set("Accept", "*/*")
	} else if headers.Get("Accept") == "" {
		headers.Del("Accept")
	}
}

// transport sends plain HTTP over one connection per request in the caller's
// goroutine: http.Transport, which does TLS here, starts two more for each.
type transport struct{ tls *http.Transport }

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "http" {
		return t.tls.RoundTrip(req)
	}
	conn, err := dialer.DialContext(req.Context(), "tcp", hostPort(req.URL))
	if err != nil {
		return nil, err
	}
	return over(conn, req, func() (*http.Response, error) { return exchange(conn, req) })
}

// over bounds by req's context what talk says on conn; the answer's body closes it.
func over(conn net.Conn, req *http.Request, talk func() (*http.Response, error)) (*http.Response, error) {
	stop := context.AfterFunc(req.Context(), func() { _ = conn.Close() })
	res, err := talk()
	if err != nil {
		stop()
		_ = conn.Close()
		if req.Context().Err() != nil {
			return nil, req.Context().Err()
		}
		return nil, err
	}
	res.Body = &body{ReadCloser: res.Body, conn: conn, stop: stop}
	return res, nil
}

func hostPort(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	return net.JoinHostPort(u.Hostname(), "80") // a redirect may leave it out
}

func exchange(conn net.Conn, req *http.Request) (*http.Response, error) {
	out := req.Clone(req.Context())
	out.Close = true
	if err := out.Write(conn); err != nil {
		return nil, err
	}
	return answer(conn, req)
}

func answer(from io.Reader, req *http.Request) (*http.Response, error) {
	return readResponse(bufio.NewReader(&headLimit{r: from, left: maxHead}), req)
}

// maxHead bounds what is read of a response in all: the body's limit and a fair head.
const maxHead = maxOutput + 1<<20

// headLimit fails, other than io.LimitReader, when the limit is reached.
type headLimit struct {
	r    io.Reader
	left int
}

// Read implements io.Reader.
func (l *headLimit) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errors.New("response head is too long")
	}
	n, err := l.r.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}

// body closes the connection with it.
type body struct {
	io.ReadCloser
	conn net.Conn
	stop func() bool
}

// Close implements io.Closer. It does not read the rest, which may have no end.
func (b *body) Close() error {
	b.stop()
	return b.conn.Close()
}
