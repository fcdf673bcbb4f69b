package probes

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// scripted is a server that lets talk answer each connection, and closes it.
func scripted(t *testing.T, talk func(conn *net.TCPConn, request *http.Request)) (port int, connections *atomic.Int32) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	connections = &atomic.Int32{}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			connections.Add(1)
			go func() {
				defer conn.Close()
				if req, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					talk(conn.(*net.TCPConn), req)
				}
			}()
		}
	}()
	return portOf(t, listener.Addr().String()), connections
}

func httpProbe(port int, headers ...corev1.HTTPHeader) *corev1.Probe {
	return &corev1.Probe{TimeoutSeconds: 30, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
		Path: "/", Port: intstr.FromInt(port), HTTPHeaders: headers,
	}}}
}

func TestAnswers(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	long := strings.Repeat("x", 3*maxOutput)
	for name, test := range map[string]struct {
		answer string
		want   result
		output string // or of the error
		failed bool   // could not be run
	}{
		"length":                    {ok + "Content-Length: 2\r\n\r\nhi and more", success, "hi", false},
		"until the end":             {ok + "\r\nhi", success, "hi", false},
		"HTTP/1.0":                  {"HTTP/1.0 200 OK\r\n\r\nhi", success, "hi", false},
		"chunked":                   {ok + "Transfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n", success, "hi", false},
		"no body":                   {"HTTP/1.1 204 No Content\r\n\r\n", success, "", false},
		"informational":             {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + ok + "Content-Length: 2\r\n\r\nhi", success, "hi", false},
		"informational for ever":    {strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 100), failure, "too many 1xx", false},
		"switched":                  {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: a\r\n\r\n", failure, "statuscode: 101", false},
		"redirect without location": {"HTTP/1.1 302 Found\r\nContent-Length: 2\r\n\r\nhi", success, "Probe terminated redirects, Response body: hi", false},
		"long body":                 {ok + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(long)) + long, success, long[:maxOutput], false},
		"long head":                 {ok + "A: " + strings.Repeat("x", maxHead), failure, "too long", false},
		"long line":                 {strings.Repeat("x", 5*readSize) + "\r\n\r\n", failure, "malformed HTTP response", false},
		"malformed":                 {"SSH-2.0-OpenSSH\r\n\r\n", failure, "transport connection broken: malformed HTTP response", false},
		"malformed header":          {ok + "no colon\r\n\r\n", failure, "transport connection broken: malformed MIME header", false},
		"two lengths":               {ok + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nhi", failure, "Content-Length", false},
		"half a head":               {"HTTP/1.1 200 OK\r\nA: b\r\n", failure, "unexpected EOF", false},
		"nothing":                   {"", failure, ": EOF", false},
		"half a body":               {ok + "Content-Length: 10\r\n\r\nhi", failure, "unexpected EOF", true},
		"half a chunk":              {ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhi", failure, "unexpected EOF", true},
		"a bad status and no body":  {"HTTP/1.1 503 Wait\r\nContent-Length: 0\r\n\r\n", failure, "statuscode: 503", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			port, _ := scripted(t, func(conn *net.TCPConn, _ *http.Request) { _, _ = io.WriteString(conn, test.answer) })
			o, err := New(nil).try(t.Context(), httpProbe(port), Target{PodIP: "127.0.0.1"})
			output := o.output
			if err != nil {
				output = err.Error()
			}
			if o.result != test.want || (err != nil) != test.failed || !strings.Contains(output, test.output) {
				t.Errorf("got %+v, %v", o, err)
			}
		})
	}
}

// TestAnswerBeforeTheRequest: a server that does not read what it is asked may reset the connection behind its answer.
func TestAnswerBeforeTheRequest(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	got := make(chan outcome, 1)
	c := newCall(routeOf(httpProbe(portOf(t, listener.Addr().String())), Target{PodIP: "127.0.0.1"}), time.Minute,
		func(o outcome, _ error) { got <- o })
	s := &scratch{}
	c.fd, err = c.route.socket()
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Connect(c.fd, c.route.to)
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
	conn.Close()
	for !c.over() {
		await(t, c.fd, c.advance(s))
	}
	if o := <-got; o.result != success || o.output != "hi" {
		t.Errorf("got %+v", o)
	}
}

// await waits for events of a socket.
func await(t *testing.T, fd int, events uint32) {
	t.Helper()
	if events == 0 {
		return
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: int16(events)}}, 60_000)
		switch {
		case n > 0:
			return
		case err != unix.EINTR:
			t.Fatalf("nothing happens: %v", err)
		}
	}
}

// TestAnswerInPieces: the first are the call's, which then hands the connection over.
func TestAnswerInPieces(t *testing.T) {
	requests := make(chan *net.TCPConn, 1)
	closed := make(chan struct{})
	port, _ := scripted(t, func(conn *net.TCPConn, _ *http.Request) {
		requests <- conn
		<-closed
	})
	got := make(chan outcome, 1)
	c := newCall(routeOf(httpProbe(port), Target{PodIP: "127.0.0.1"}), time.Minute, func(o outcome, _ error) { got <- o })
	s := &scratch{}
	c.start(s)
	for !c.connected {
		await(t, c.fd, unix.EPOLLOUT)
		c.advance(s)
	}
	conn := <-requests
	answer := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
	for i := range len(answer) {
		if _, err := io.WriteString(conn, answer[i:i+1]); err != nil {
			t.Fatal(err)
		}
		if c.over() {
			continue
		}
		await(t, c.fd, unix.EPOLLIN)
		c.advance(s)
		if c.over() != (i+1 == maxReads) {
			t.Fatalf("handed over after %d pieces", i+1)
		}
	}
	if o := <-got; o.result != success || o.output != "hi" {
		t.Errorf("got %+v", o)
	}
	close(closed)
}

// TestLongRequest is more than a socket takes at once.
func TestLongRequest(t *testing.T) {
	long := strings.Repeat("x", 8<<20)
	got := make(chan int, 1)
	port, _ := scripted(t, func(conn *net.TCPConn, r *http.Request) {
		got <- len(r.Header.Get("A"))
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
	})
	o, err := New(nil).try(t.Context(), httpProbe(port, corev1.HTTPHeader{Name: "A", Value: long}), Target{PodIP: "127.0.0.1"})
	if err != nil || o.result != success {
		t.Fatalf("%+v %v", o, err)
	}
	if n := <-got; n != len(long) {
		t.Errorf("%d bytes of the header came", n)
	}
}

// TestRequest is what net/http's transport adds for a kubelet or leaves out.
func TestRequest(t *testing.T) {
	requests := make(chan *http.Request, 3)
	port, connections := scripted(t, func(conn *net.TCPConn, r *http.Request) {
		requests <- r
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n")
		_, _ = conn.Read(make([]byte, 1)) // until the other end closes
	})
	p := New(nil)
	for range 3 {
		if o, err := p.try(t.Context(), httpProbe(port), Target{PodIP: "127.0.0.1"}); err != nil || o.result != success {
			t.Fatalf("%+v %v", o, err)
		}
		r := <-requests
		if !r.Close || r.Header.Get("Accept-Encoding") != "" || r.Host != fmt.Sprintf("127.0.0.1:%d", port) ||
			r.UserAgent() != userAgent || r.Header.Get("Accept") != "*/*" || r.ProtoMinor != 1 || r.ContentLength != 0 {
			t.Errorf("request %+v", r)
		}
	}
	if n := connections.Load(); n != 3 {
		t.Errorf("%d connections for 3 probes", n)
	}
}

// TestExpiry: where the time-out met the probe is said in net/http's words.
func TestExpiry(t *testing.T) {
	const awaiting = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
	for name, test := range map[string]struct {
		answer, output string
		reached        func(*call) bool
	}{
		"connecting":   {"", ": i/o timeout (Client.Timeout exceeded while awaiting headers)", func(*call) bool { return true }},
		"nothing":      {"", awaiting, func(c *call) bool { return c.connected }},
		"part of head": {"HTTP/1.1 200 OK\r\nA:", awaiting, func(c *call) bool { return len(c.got) > 0 }},
		"part of body": {
			"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh",
			"context deadline exceeded (Client.Timeout or context cancellation while reading body)", func(c *call) bool { return c.headed },
		},
	} {
		t.Run(name, func(t *testing.T) {
			held := make(chan struct{})
			defer close(held)
			port, _ := scripted(t, func(conn *net.TCPConn, _ *http.Request) {
				_, _ = io.WriteString(conn, test.answer)
				<-held
			})
			var output string
			c := newCall(routeOf(httpProbe(port), Target{PodIP: "127.0.0.1"}), time.Minute, func(o outcome, err error) {
				if output = o.output; err != nil {
					output = err.Error()
				}
			})
			var err error
			if c.fd, err = c.route.socket(); err != nil {
				t.Fatal(err)
			}
			for s := (&scratch{}); !test.reached(c); {
				if events := c.advance(s); !test.reached(c) {
					await(t, c.fd, events)
				}
			}
			c.expire()
			if !c.over() || !strings.Contains(output, test.output) {
				t.Errorf("got %q", output)
			}
		})
	}
}

// TestTimeout: it is for all of a probe, redirects included.
func TestTimeout(t *testing.T) {
	held := make(chan struct{})
	hangs, _ := scripted(t, func(*net.TCPConn, *http.Request) { <-held })
	redirects, _ := scripted(t, func(conn *net.TCPConn, _ *http.Request) {
		fmt.Fprintf(conn, "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:%d/\r\n\r\n", hangs)
	})
	t.Cleanup(func() { close(held) })
	for _, port := range []int{hangs, redirects} {
		o, err := callOnce(routeOf(httpProbe(port), Target{PodIP: "127.0.0.1"}), 200*time.Millisecond)
		if err != nil || o.result != failure || !strings.Contains(o.output, "exceeded") {
			t.Errorf("got %+v, %v", o, err)
		}
	}
}

// TestNobodyThere: the words are package net's.
func TestNobodyThere(t *testing.T) {
	port := closedPort(t)
	tcp := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(port)}}}
	refused := fmt.Sprintf("dial tcp 127.0.0.1:%d: connect: connection refused", port)
	for want, spec := range map[string]*corev1.Probe{refused: tcp, fmt.Sprintf(`Get "http://127.0.0.1:%d/": %s`, port, refused): httpProbe(port)} {
		o, err := callOnce(routeOf(spec, Target{PodIP: "127.0.0.1"}), time.Minute)
		if err != nil || o.result != failure || o.output != want {
			t.Errorf("got %+v %v, want %s", o, err, want)
		}
	}
}

// TestConnectedToItself: TCP allows it, and it says that nobody listens.
func TestConnectedToItself(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	if err != nil {
		t.Fatal(err)
	}
	var got outcome
	c := newCall(routeTo(localOf(fd).String(), Target{}), time.Minute, func(o outcome, _ error) { got = o })
	c.fd = fd
	_ = unix.Connect(fd, c.route.to)
	for s := (&scratch{}); !c.over(); {
		await(t, fd, c.advance(s))
	}
	if got.result != failure || !strings.Contains(got.output, "connection refused") {
		t.Errorf("got %+v", got)
	}
}

// TestRouteOf: what is no call is left to net/http and package net.
func TestRouteOf(t *testing.T) {
	get := func(change func(*corev1.HTTPGetAction)) *corev1.Probe {
		p := httpProbe(80)
		change(p.HTTPGet)
		return p
	}
	for name, test := range map[string]struct {
		spec  *corev1.Probe
		podIP string
		want  string
	}{
		"http":          {httpProbe(80), "10.0.0.1", "10.0.0.1:80"},
		"IPv6":          {httpProbe(80), "fd00::1", "[fd00::1]:80"},
		"mapped":        {httpProbe(80), "::ffff:10.0.0.1", "10.0.0.1:80"},
		"other host":    {get(func(g *corev1.HTTPGetAction) { g.Host = "10.0.0.2" }), "10.0.0.1", "10.0.0.2:80"},
		"https":         {get(func(g *corev1.HTTPGetAction) { g.Scheme = corev1.URISchemeHTTPS }), "10.0.0.1", ""},
		"a name":        {get(func(g *corev1.HTTPGetAction) { g.Host = "localhost" }), "10.0.0.1", ""},
		"a zone":        {get(func(g *corev1.HTTPGetAction) { g.Host = "fe80::1%lo" }), "10.0.0.1", ""},
		"a user":        {get(func(g *corev1.HTTPGetAction) { g.Path = "//me:pw@x/" }), "10.0.0.1", ""},
		"no such port":  {get(func(g *corev1.HTTPGetAction) { g.Port = intstr.FromString("web") }), "10.0.0.1", ""},
		"no address":    {httpProbe(80), "", ""},
		"exec":          {probeOf("r", nil), "10.0.0.1", ""},
		"tcp, no port":  {&corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{}}}, "10.0.0.1", ""},
		"tcp at a name": {&corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Host: "a.b", Port: intstr.FromInt(1)}}}, "10.0.0.1", ""},
		"tcp":           {&corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(1)}}}, "10.0.0.1", "10.0.0.1:1"},
	} {
		got := ""
		if r := routeOf(test.spec, Target{PodIP: test.podIP}); r != nil {
			got = r.at.String()
		}
		if got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// TestRounds: more probes than a round holds, some of which nobody answers, find their results.
func TestRounds(t *testing.T) {
	plain := server(t, false)
	port := portOf(t, plain.Listener.Addr().String())
	down := closedPort(t)
	failed := make(chan string, 100)
	changed := make(chan string, 100)
	p := New(nil)
	p.OnEvent(func(target Target, _, _, _ string) { failed <- target.PodUID })
	p.OnChange(func(uid string) { changed <- uid })
	for i := range 100 {
		uid := fmt.Sprint(i)
		spec := httpProbe(port)
		spec.HTTPGet.Path = "/ok"
		switch i % 3 {
		case 1:
			spec.ProbeHandler = corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(port)}}
		case 2:
			spec = httpProbe(down)
		}
		spec.PeriodSeconds = 3600
		t.Cleanup(func() { p.Stop(uid, "") })
		p.Sync(Target{PodUID: uid, PodIP: "127.0.0.1", StartedAtUnixNano: time.Now().UnixNano(), Container: corev1.Container{Name: "c", ReadinessProbe: spec}})
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 100 {
		select {
		case <-failed:
		case <-changed:
		case <-ctx.Done():
			t.Fatal("not all probes were run")
		}
	}
	for i := range 100 {
		if r, ok := p.Results(fmt.Sprint(i), "c", 0); !ok || r.Ready != (i%3 != 2) {
			t.Errorf("probe %d: %+v", i, r)
		}
	}
}

// TestSlowConnect: a connection that is not made at once is waited for, and then asked.
func TestSlowConnect(t *testing.T) {
	// A queue of one connection, which is taken: the next SYN is dropped, and sent again after a second.
	server, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(server)
	if err := errors.Join(unix.Bind(server, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(server, 0)); err != nil {
		t.Fatal(err)
	}
	at := localOf(server)
	first, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	got := make(chan outcome, 1)
	c := newCall(routeOf(httpProbe(int(at.Port())), Target{PodIP: "127.0.0.1"}), time.Minute, func(o outcome, _ error) { got <- o })
	r := &round{calls: []*call{c}, events: []uint32{unix.EPOLLOUT}, scratch: &scratch{}}
	c.start(r.scratch)
	if c.connected || c.over() {
		t.Fatal("connected to a server whose queue is full")
	}
	go func() {
		for range 2 {
			conn, _, err := unix.Accept(server)
			if err != nil {
				return
			}
			defer unix.Close(conn)
			_, _ = unix.Write(conn, []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"))
		}
		<-t.Context().Done()
	}()
	if err := r.waitForAll(); err != nil {
		t.Fatal(err)
	}
	if o := <-got; o.result != success || o.output != "hi" {
		t.Errorf("got %+v", o)
	}
}
