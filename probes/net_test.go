package probes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// server answers by path.
func server(t testing.TB, tls bool) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s %s %t", r.UserAgent(), r.Host, r.Header.Get("X-Test"), r.Header.Get("Accept"), r.Close)
	})
	mux.HandleFunc("/500", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "secret", http.StatusInternalServerError) })
	mux.HandleFunc("/local", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/ok", http.StatusFound) })
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://away.invalid/", http.StatusFound)
	})
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			_, _ = w.Write(make([]byte, 4096))
		}
	})
	s := httptest.NewUnstartedServer(mux)
	if tls {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

func portOf(t testing.TB, address string) int {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestHTTP(t *testing.T) {
	plain, secure := server(t, false), server(t, true)
	tests := []struct {
		name, path string
		tls        bool
		headers    []corev1.HTTPHeader
		want       result
		output     string
		warning    bool
	}{
		{name: "success", path: "/ok", want: success, output: "kube-probe/1.35 127.0.0.1"},
		{name: "closes", path: "/ok", want: success, output: "*/* true"},
		{
			name: "headers", path: "/ok?x=1", want: success, output: "me other.host 1  true",
			headers: []corev1.HTTPHeader{{Name: "host", Value: "other.host"}, {Name: "X-Test", Value: "1"}, {Name: "User-Agent", Value: "me"}, {Name: "Accept", Value: ""}},
		},
		{name: "https", path: "/ok", tls: true, want: success, output: "kube-probe/1.35"},
		{name: "status without body", path: "/500", want: failure, output: "HTTP probe failed with statuscode: 500"},
		{name: "local redirect", path: "/local", want: success, output: "kube-probe/1.35"},
		{name: "redirect loop", path: "/loop", want: failure, output: "stopped after 10 redirects"},
		{name: "redirect away", path: "/away", want: success, output: "Probe terminated redirects", warning: true},
		{name: "time-out", path: "/slow", want: failure, output: "exceeded"}, // net/http names its own time-out or the deadline
		{name: "endless body", path: "/endless", want: success},
		{name: "https asked by http", path: "/ok", tls: true, want: failure, headers: []corev1.HTTPHeader{{Name: "X-Plain"}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, scheme := plain, corev1.URISchemeHTTP
			if test.tls {
				s, scheme = secure, corev1.URISchemeHTTPS
			}
			if len(test.headers) == 1 {
				scheme = corev1.URISchemeHTTP
			}
			patience := int32(30)
			if test.path == "/slow" {
				patience = 1
			}
			spec := &corev1.Probe{TimeoutSeconds: patience, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
				Path: test.path, Port: intstr.FromString("web"), Scheme: scheme, HTTPHeaders: test.headers,
			}}}
			target := Target{PodIP: "127.0.0.1", Container: corev1.Container{Ports: []corev1.ContainerPort{
				{Name: "web", ContainerPort: int32(portOf(t, s.Listener.Addr().String()))},
			}}}
			o, err := New(nil).try(t.Context(), spec, target)
			if err != nil {
				t.Fatal(err)
			}
			if o.result != test.want || !strings.Contains(o.output, test.output) || o.warning != test.warning || len(o.output) > maxOutput {
				t.Errorf("got %s %q %v, want %s %q %v", o.result, o.output, o.warning, test.want, test.output, test.warning)
			}
		})
	}
}

// TestIgnoresProxy: the node's proxy settings are not for probes.
func TestIgnoresProxy(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	s := server(t, true)
	spec := &corev1.Probe{TimeoutSeconds: 30, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
		Path: "/ok", Scheme: corev1.URISchemeHTTPS, Port: intstr.FromInt(portOf(t, s.Listener.Addr().String())),
	}}}
	o, err := New(nil).try(t.Context(), spec, Target{PodIP: "127.0.0.1"})
	if err != nil || o.result != success {
		t.Errorf("%+v %v", o, err)
	}
}

func TestTCP(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for port, want := range map[int]result{portOf(t, listener.Addr().String()): success, closedPort(t): failure} {
		spec := &corev1.Probe{TimeoutSeconds: 30, ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(port)}}}
		if o, err := New(nil).try(t.Context(), spec, Target{PodIP: "127.0.0.1"}); err != nil || o.result != want {
			t.Errorf("%+v %v, want %s", o, err, want)
		}
	}
}

// closedPort is one of 127.0.0.1 that nobody listens on, nor can until the test ends.
func closedPort(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return at.(*unix.SockaddrInet4).Port
}

func TestGRPC(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, h := grpc.NewServer(), health.NewServer()
	h.SetServingStatus("down", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	grpc_health_v1.RegisterHealthServer(s, h)
	go func() { _ = s.Serve(listener) }()
	t.Cleanup(s.Stop)
	bare, err := net.Listen("tcp", "127.0.0.1:0") // accepts and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	tests := []struct {
		name, service, address string
		want                   result
		output                 string
	}{
		{"serving", "", listener.Addr().String(), success, "service healthy"},
		{"down", "down", listener.Addr().String(), failure, "NOT_SERVING"},
		{"unknown service", "nobody", listener.Addr().String(), failure, "health rpc probe failed"},
		{"no server", "", bare.Addr().String(), failure, "timeout"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			patience := int32(30)
			if test.output == "timeout" {
				patience = 1
			}
			spec := &corev1.Probe{TimeoutSeconds: patience, ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{
				Port: int32(portOf(t, test.address)), Service: &test.service,
			}}}
			o, err := New(nil).try(t.Context(), spec, Target{PodIP: "127.0.0.1"})
			if err != nil || o.result != test.want || !strings.Contains(o.output, test.output) {
				t.Errorf("got %+v %v", o, err)
			}
		})
	}
}

func TestResolvePort(t *testing.T) {
	c := corev1.Container{Name: "c", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 80}}}
	for in, want := range map[string]int{"web": 80, "81": 81, "nope": 0, "0": 0, "70000": 0} {
		got, err := resolvePort(intstr.FromString(in), c)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d %v", in, got, err)
		}
	}
}

// BenchmarkHTTP is one http probe: 1,000 at 1 Hz cost 1,000 times this per second.
func BenchmarkHTTP(b *testing.B) {
	benchmark(b, corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromString("web")}})
}

// BenchmarkTCP is one tcp probe.
func BenchmarkTCP(b *testing.B) {
	benchmark(b, corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("web")}})
}

// BenchmarkFloor is what the kernel takes of the CPU for a tcp probe: a connection made and
// closed by system calls alone.
func BenchmarkFloor(b *testing.B) { benchmarkFloor(b, false) }

// BenchmarkFloorHTTP is the same with a request and an answer.
func BenchmarkFloorHTTP(b *testing.B) { benchmarkFloor(b, true) }

func benchmarkFloor(b *testing.B, ask bool) {
	port := portOf(b, otherProcess(b))
	before := cpuTime()
	for b.Loop() {
		connectOnce(b, port, ask)
	}
	b.ReportMetric(float64((cpuTime()-before)/time.Duration(b.N))/1e3, "cpu-µs/op")
}

func connectOnce(b *testing.B, port int, ask bool) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil && ask {
		_, err = unix.Write(fd, []byte("GET /ok HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
		if err == nil {
			_, err = unix.Read(fd, make([]byte, 4096))
		}
	}
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		b.Fatal(err)
	}
}

// floor is the processor time of one connection by system calls alone, measured now.
func floor(b *testing.B, port int, ask bool) time.Duration {
	const n = 3000
	before := cpuTime()
	for range n {
		connectOnce(b, port, ask)
	}
	return (cpuTime() - before) / n
}

// BenchmarkThousandAtOneHertz runs 1,000 probes of one second's period, half of them http,
// half tcp, for a second per iteration, and says what part of a core they take.
func BenchmarkThousandAtOneHertz(b *testing.B) {
	at := portOf(b, otherProcess(b))
	port := intstr.FromInt(at)
	p := New(nil)
	for i := range 1000 {
		handler := corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: port}}
		if i%2 == 0 {
			handler = corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ok", Port: port}}
		}
		uid := strconv.Itoa(i)
		b.Cleanup(func() { p.Stop(uid, "") })
		p.Sync(Target{PodUID: uid, PodIP: "127.0.0.1", Container: corev1.Container{
			Name: "c", ReadinessProbe: &corev1.Probe{ProbeHandler: handler, PeriodSeconds: 1},
		}})
	}
	time.Sleep(2 * time.Second) // the first probes are over
	before, begun := cpuTime(), time.Now()
	for b.Loop() {
		time.Sleep(time.Second) // what is measured goes on meanwhile
	}
	used, took := cpuTime()-before, time.Since(begun)
	b.ReportMetric(100*float64(used)/float64(took), "%core")
	least := 500 * (floor(b, at, false) + floor(b, at, true)).Seconds() * took.Seconds()
	b.ReportMetric(used.Seconds()/least, "of-floor")
	for i := range 1000 {
		if r, ok := p.Results(strconv.Itoa(i), "c", 0); !ok || !r.Ready {
			b.Fatalf("probe %d: %+v", i, r)
		}
	}
}

const serveEnv = "VK_METAL_TEST_PROBE_SERVER"

// TestMain lets the test binary be a server, so that a benchmark counts the prober alone.
func TestMain(m *testing.M) {
	if os.Getenv(serveEnv) == "" {
		os.Exit(m.Run())
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr())
	_ = http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }))
}

func otherProcess(b *testing.B) (address string) {
	b.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), serveEnv+"=1")
	out, err := child.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := child.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _, _ = child.Process.Kill(), child.Wait() })
	if _, err := fmt.Fscanln(out, &address); err != nil {
		b.Fatal(err)
	}
	return address
}

// benchmark reports the CPU time of the prober alone: the server is another process.
func benchmark(b *testing.B, handler corev1.ProbeHandler) {
	port := portOf(b, otherProcess(b))
	target := Target{PodIP: "127.0.0.1", Container: corev1.Container{Ports: []corev1.ContainerPort{
		{Name: "web", ContainerPort: int32(port)},
	}}}
	p := New(nil)
	before := cpuTime()
	for b.Loop() {
		if o, err := p.try(context.Background(), &corev1.Probe{ProbeHandler: handler, TimeoutSeconds: 30}, target); err != nil || o.result != success {
			b.Fatal(o, err)
		}
	}
	each := (cpuTime() - before) / time.Duration(b.N)
	b.ReportMetric(float64(each)/1e3, "cpu-µs/op")
	b.ReportMetric(float64(each)/float64(floor(b, port, handler.HTTPGet != nil)), "of-floor")
}

func TestHook(t *testing.T) {
	plain, secure := server(t, false), server(t, true)
	get := func(s *httptest.Server, path string, scheme corev1.URIScheme) *corev1.HTTPGetAction {
		return &corev1.HTTPGetAction{Port: intstr.FromInt(portOf(t, s.Listener.Addr().String())), Path: path, Scheme: scheme}
	}
	gone := intstr.FromInt(closedPort(t))
	for name, tc := range map[string]struct {
		get   *corev1.HTTPGetAction
		plain bool
		fails bool
	}{
		"http":                       {get(plain, "/ok", "HTTP"), false, false},
		"no scheme":                  {get(plain, "/ok", ""), false, false},
		"any status will do":         {get(plain, "/500", "HTTP"), false, false},
		"https":                      {get(secure, "/ok", "HTTPS"), false, false},
		"https to an http server":    {get(plain, "/ok", "HTTPS"), true, false},
		"a redirect to another host": {get(plain, "/away", "HTTP"), false, false},
		"a loop":                     {get(plain, "/loop", "HTTP"), false, true},
		"a body without an end":      {get(plain, "/endless", "HTTP"), false, false},
		"nobody there":               {&corev1.HTTPGetAction{Port: gone}, false, true},
		"https and nobody there":     {&corev1.HTTPGetAction{Port: gone, Scheme: "HTTPS"}, false, true},
		"no such port":               {&corev1.HTTPGetAction{Port: intstr.FromString("web")}, false, true},
	} {
		fellBack, err := Hook(t.Context(), tc.get, Target{PodIP: "127.0.0.1"})
		if fellBack != tc.plain || (err != nil) != tc.fails {
			t.Errorf("%s: plain %t, error %v", name, fellBack, err)
		}
	}
}
