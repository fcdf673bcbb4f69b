package kubeletapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	utilexec "k8s.io/utils/exec"

	"github.com/vk-metal/vk-metal/internal/testcluster"
)

// fakeBackend has one pod with a container that runs and one that waits.
type fakeBackend struct {
	pod  *corev1.Pod
	gone chan struct{} // closed when the client of "wait" is

	sick  atomic.Bool
	level atomic.Int32
}

func (b *fakeBackend) health() error {
	if b.sick.Load() {
		return errors.New("a part does not answer")
	}
	return nil
}

func (b *fakeBackend) verbosity(level int) { b.level.Store(int32(level)) }

func newBackend() *fakeBackend {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "uid-1"}}
	pod.Spec.Containers = []corev1.Container{{Name: "runs"}, {Name: "waits"}}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{
		{Name: "runs", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}},
		{Name: "waits", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}},
	}
	return &fakeBackend{pod: pod, gone: make(chan struct{})}
}

func (b *fakeBackend) Pods() []*corev1.Pod { return []*corev1.Pod{b.pod} }

func (b *fakeBackend) Pod(namespace, name string) (*corev1.Pod, bool) {
	return b.pod, namespace == "ns" && name == "p"
}

func (b *fakeBackend) Logs(_ context.Context, ref Ref, opts *corev1.PodLogOptions, stdout, stderr io.Writer) error {
	if ref.Container == "waits" {
		return errors.New(`container "waits" in pod "p" is waiting to start: ContainerCreating`)
	}
	tail := int64(-1)
	if opts.TailLines != nil {
		tail = *opts.TailLines
	}
	if stdout != nil && tail != 0 {
		fmt.Fprintf(stdout, "out tail=%d\n", tail)
	}
	if stderr != nil && tail != 0 {
		fmt.Fprintln(stderr, "err")
	}
	return nil
}

// Exec is a shell with four commands: cat, exit, size, wait.
func (b *fakeBackend) Exec(ctx context.Context, _ Ref, cmd []string, stdin io.Reader, stdout, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	switch cmd[0] {
	case "cat":
		if _, err := io.Copy(stdout, stdin); err != nil {
			return err
		}
		_, err := io.WriteString(stderr, "done")
		return err
	case "wait":
		_, _ = io.WriteString(stdout, "waiting")
		<-ctx.Done()
		close(b.gone)
		return ctx.Err()
	case "exit":
		return utilexec.CodeExitError{Err: errors.New("exit 42"), Code: 42}
	case "size":
		size := <-resize
		_, err := fmt.Fprintf(stdout, "%dx%d tty=%v", size.Width, size.Height, tty)
		return err
	}
	return errors.New("cannot start")
}

func (b *fakeBackend) Attach(_ context.Context, _ Ref, _ io.Reader, stdout, _ io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
	_, err := io.WriteString(stdout, "attached")
	return err
}

func (b *fakeBackend) PortForward(_ context.Context, _ Ref, port int32, stream io.ReadWriteCloser) error {
	if port != 8080 {
		return errors.New("connection refused")
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(stream, buf); err != nil {
		return err
	}
	_, err := fmt.Fprintf(stream, "%s from %d", buf, port)
	return err
}

// Summary implements Stats.
func (b *fakeBackend) Summary(context.Context, bool) (*statsv1alpha1.Summary, error) {
	nanos, bytes := uint64(2_500_000_000), uint64(1<<20)
	usage := func() (*statsv1alpha1.CPUStats, *statsv1alpha1.MemoryStats) {
		return &statsv1alpha1.CPUStats{Time: metav1.Now(), UsageCoreNanoSeconds: &nanos}, &statsv1alpha1.MemoryStats{Time: metav1.Now(), WorkingSetBytes: &bytes}
	}
	var s statsv1alpha1.Summary
	s.Node.CPU, s.Node.Memory = usage()
	pod := statsv1alpha1.PodStats{PodRef: statsv1alpha1.PodReference{Name: "p", Namespace: "ns", UID: "uid-1"}}
	pod.CPU, pod.Memory = usage()
	c := statsv1alpha1.ContainerStats{Name: "runs", StartTime: metav1.Now()}
	c.CPU, c.Memory = usage()
	c.Swap = &statsv1alpha1.SwapStats{Time: metav1.Now(), SwapUsageBytes: new(uint64(4096))}
	capacity, inodes := uint64(4096), uint64(3)
	c.Rootfs, c.Logs = &statsv1alpha1.FsStats{UsedBytes: &capacity, Inodes: &inodes}, &statsv1alpha1.FsStats{UsedBytes: &bytes}
	pod.Containers = append(pod.Containers, c, statsv1alpha1.ContainerStats{Name: "new"})
	volume := statsv1alpha1.VolumeStats{
		Name: "v", PVCRef: &statsv1alpha1.PVCReference{Name: "data", Namespace: "ns"}, VolumeHealthStats: &statsv1alpha1.VolumeHealthStats{Abnormal: true},
		FsStats: statsv1alpha1.FsStats{CapacityBytes: &capacity, InodesUsed: &inodes},
	}
	pod.VolumeStats = append(pod.VolumeStats, volume, volume, statsv1alpha1.VolumeStats{Name: "no claim"})
	s.Pods = append(s.Pods, pod)
	return &s, nil
}

type fixture struct {
	t       *testing.T
	backend *fakeBackend
	cluster *testcluster.Cluster
	url     string
	admin   tls.Certificate
}

func serve(t *testing.T) *fixture {
	cluster := testcluster.Start(t, testcluster.Options{})
	caFile := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(caFile, cluster.CA.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	serving := cluster.CA.Issue(t, "system:node:metal-1", "system:nodes")
	backend := newBackend()
	own := prometheus.NewRegistry()
	own.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "agents_own"}, func() float64 { return 7 }))
	server, err := New(Options{
		Metrics: own, NodeName: "metal-1", Listen: netip.MustParseAddrPort("127.0.0.1:0"), ClientCA: caFile,
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &serving, nil },
		Client:      cluster.Client(serving), Pods: backend, Streams: backend, Stats: backend,
		Logs: http.FileServerFS(fstest.MapFS{"syslog": {Data: []byte("a line")}}), Health: backend.health, Verbosity: backend.verbosity, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	<-server.Ready()
	return &fixture{t, backend, cluster, "https://" + server.Addr().String(), cluster.CA.Issue(t, "admin", "system:masters")}
}

// do asks as somebody: with a certificate, a token, or nothing.
func (f *fixture) do(method, path string, cert *tls.Certificate, token string) (int, string) {
	f.t.Helper()
	return f.send(method, path, "", cert, token)
}

func (f *fixture) send(method, path, content string, cert *tls.Certificate, token string) (int, string) {
	f.t.Helper()
	config := &tls.Config{RootCAs: f.cluster.CA.Pool()}
	if cert != nil {
		// Offered whatever CAs the server names, as an attacker would.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	req, err := http.NewRequestWithContext(f.t.Context(), method, f.url+path, strings.NewReader(content))
	if err != nil {
		f.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, Timeout: 30 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

func TestServer(t *testing.T) {
	f := serve(t)
	t.Run("who may", f.testAuth)
	t.Run("tokens", f.testTokens)
	t.Run("logs", f.testLogs)
	t.Run("exec", f.testExec)
	t.Run("port-forward", f.testPortForward)
	t.Run("metrics", f.testMetrics)
	t.Run("health", f.testHealth)
	t.Run("verbosity", f.testVerbosity)
}

// testHealth: a kubelet's checks by name, and what is wrong only for who asks for the one.
func (f *fixture) testHealth(t *testing.T) {
	check := func(path string, wantCode int, want string) {
		t.Helper()
		if code, body := f.do("GET", path, &f.admin, ""); code != wantCode || body != want {
			t.Errorf("%s = %d %q, want %d %q", path, code, body, wantCode, want)
		}
	}
	check("/healthz", 200, "ok")
	check("/healthz/syncloop", 200, "ok")
	check("/healthz?verbose", 200, "[+]ping ok\n[+]log ok\n[+]syncloop ok\nhealthz check passed\n")
	f.backend.sick.Store(true)
	defer f.backend.sick.Store(false)
	check("/healthz", 500, "[+]ping ok\n[+]log ok\n[-]syncloop failed: reason withheld\nhealthz check failed\n")
	check("/healthz/syncloop", 500, "internal server error: a part does not answer\n")
	check("/healthz/ping", 200, "ok")
	check("/healthz?exclude=syncloop", 200, "ok")
	if _, body := f.do("GET", "/metrics/slis", &f.admin, ""); !strings.Contains(body, `kubernetes_healthcheck{name="syncloop",type="healthz"} 0`) {
		t.Errorf("/metrics/slis lacks the check that failed:\n%s", body)
	}
}

func (f *fixture) testVerbosity(t *testing.T) {
	for _, tc := range []struct {
		body string
		code int
		want string
	}{
		{"4", 200, "successfully set klog.logging to 4"},
		{"x", 400, "failed set klog.logging x: "},
		{strings.Repeat("1", 100), 400, "error reading request body: "},
	} {
		if code, body := f.send("PUT", "/debug/flags/v", tc.body, &f.admin, ""); code != tc.code || !strings.HasPrefix(body, tc.want) {
			t.Errorf("%q = %d %q, want %d %q", tc.body, code, body, tc.code, tc.want)
		}
	}
	if level := f.backend.level.Load(); level != 4 {
		t.Errorf("level %d, want 4", level)
	}
}

func (f *fixture) testAuth(t *testing.T) {
	foreign := testcluster.NewCA(t, "kubernetes").Issue(t, "admin", "system:masters")
	node := f.cluster.CA.Issue(t, "system:node:metal-1", "system:nodes")
	nobody := f.cluster.CA.Issue(t, "mallory")
	cases := []struct {
		name         string
		cert         *tls.Certificate
		method, path string
		want         int
	}{
		{"no certificate", nil, "GET", "/pods", 401},
		{"no certificate, health", nil, "GET", "/healthz", 401},
		{"no certificate, unknown path", nil, "GET", "/x", 401},
		{"foreign CA of the same name", &foreign, "GET", "/pods", 401},
		{"foreign CA, exec", &foreign, "POST", "/exec/ns/p/runs?command=cat&output=1", 401},
		{"the node itself may not exec", &node, "POST", "/exec/ns/p/runs?command=cat&output=1", 403},
		{"the node itself may not read logs", &node, "GET", "/containerLogs/ns/p/runs", 403},
		{"nobody's metrics", &nobody, "GET", "/metrics", 403},
		{"nobody's profile", &nobody, "GET", "/debug/pprof/heap", 403},
		{"double slash", &nobody, "GET", "//exec/ns/p/runs", 403},
		{"dots", &nobody, "GET", "/healthz/../pods", 403},
		{"admin, pods", &f.admin, "GET", "/pods", 200},
		{"admin, pods with slash", &f.admin, "GET", "/pods/", 200},
		{"admin, health", &f.admin, "GET", "/healthz", 200},
		{"admin, running pods", &f.admin, "GET", "/runningpods/", 200},
		{"admin, configz", &f.admin, "GET", "/configz", 200},
		{"admin, profiles", &f.admin, "GET", "/debug/pprof/", 200},
		{"admin, heap", &f.admin, "GET", "/debug/pprof/heap", 200},
		{"admin, exec without upgrade", &f.admin, "POST", "/exec/ns/p/runs?command=cat&output=1", 400},
		{"admin, unknown pod", &f.admin, "POST", "/exec/ns/q/runs?command=cat&output=1", 404},
		{"admin, other UID", &f.admin, "POST", "/exec/ns/p/uid-2/runs?command=cat&output=1", 404},
		{"admin, waiting container", &f.admin, "POST", "/exec/ns/p/waits?command=cat&output=1", 500},
		{"admin, run", &f.admin, "POST", "/run/ns/p/runs?cmd=exit", 500},
		{"admin, file outside of /logs", &f.admin, "GET", "/logs/../../etc/passwd", 404},
		{"admin, a log of the server", &f.admin, "GET", "/logs/syslog", 200},
		{"nobody's log of the server", &nobody, "GET", "/logs/syslog", 403},
		{"nobody's journal", &nobody, "GET", "/logs/?query=ssh", 403},
		{"admin, checkpoint", &f.admin, "POST", "/checkpoint/ns/p/runs", 500},
		{"admin, checkpoint of an unknown container", &f.admin, "POST", "/checkpoint/ns/p/nope", 404},
		{"admin, checkpoint of an unknown pod", &f.admin, "POST", "/checkpoint/ns/q/runs", 404},
		{"admin, exec in an unknown container", &f.admin, "POST", "/exec/ns/p/nope?command=cat&output=1", 500},
		{"admin, service levels", &f.admin, "GET", "/metrics/slis", 200},
		{"admin, what an API server has and a kubelet has not", &f.admin, "GET", "/livez", 404},
		{"admin, what is alpha", &f.admin, "GET", "/statusz", 404},
		{"admin, verbosity by GET", &f.admin, "GET", "/debug/flags/v", 406},
		{"nobody's verbosity", &nobody, "PUT", "/debug/flags/v", 403},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			if code, body := f.do(tc.method, tc.path, tc.cert, ""); code != tc.want {
				t.Errorf("%s %s = %d %s, want %d", tc.method, tc.path, code, body, tc.want)
			}
		})
	}
}

// testTokens: a ServiceAccount's token opens what its role says, a forged one nothing.
func (f *fixture) testTokens(t *testing.T) {
	ctx := t.Context()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "prometheus", Namespace: "default"}}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		_, err := f.cluster.Admin.CoreV1().ServiceAccounts("default").Create(ctx, account, metav1.CreateOptions{})
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	token, err := f.cluster.Admin.CoreV1().ServiceAccounts("default").CreateToken(ctx, "prometheus", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	meta := metav1.ObjectMeta{Name: "scrape"}
	role := &rbacv1.ClusterRole{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes/metrics", "nodes/healthz"}, Verbs: []string{"get"}}}}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "scrape"},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: "prometheus", Namespace: "default"}},
	}
	if _, err := f.cluster.Admin.RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.cluster.Admin.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually := func(path string, want int) {
		for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(100 * time.Millisecond) {
			code, body := f.do("GET", path, nil, token.Status.Token)
			if code == want {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("GET %s = %d %s, want %d", path, code, body, want)
				return
			}
		}
	}
	eventually("/metrics/resource", 200)
	eventually("/healthz", 200) // fine-grained: nodes/healthz without nodes/proxy
	eventually("/pods", 403)
	eventually("/containerLogs/ns/p/runs", 403)
	if code, _ := f.do("GET", "/metrics", nil, token.Status.Token+"x"); code != 401 {
		t.Errorf("a forged token gave %d", code)
	}
}

func (f *fixture) testLogs(t *testing.T) {
	cases := map[string]struct {
		query string
		code  int
		want  string
	}{
		"all":               {"runs", 200, "out tail=-1\nerr\n"},
		"tail 0":            {"runs?tailLines=0", 200, ""},
		"tail 3":            {"runs?tailLines=3", 200, "out tail=3\nerr\n"},
		"old tail":          {"runs?tail=3", 200, "out tail=3\nerr\n"},
		"old tail all":      {"runs?tail=all", 200, "out tail=-1\nerr\n"},
		"stdout":            {"runs?stream=Stdout", 200, "out tail=-1\n"},
		"stderr":            {"runs?stream=Stderr", 200, "err\n"},
		"stream and tail":   {"runs?stream=Stderr&tailLines=1", 422, "Invalid request."},
		"unknown stream":    {"runs?stream=x", 422, "Invalid request."},
		"negative tail":     {"runs?tailLines=-1", 422, "Invalid request."},
		"no number":         {"runs?tailLines=x", 400, "Unable to decode query."},
		"zero bytes":        {"runs?limitBytes=0", 422, "Invalid request."},
		"both since":        {"runs?sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z", 422, "Invalid request."},
		"bad time":          {"runs?sinceTime=yesterday", 400, "Unable to decode query."},
		"waiting":           {"waits", 400, `container "waits" in pod "p" is waiting to start: ContainerCreating`},
		"unknown container": {"nope", 404, `container "nope" not found in pod "p"`},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			code, body := f.do("GET", "/containerLogs/ns/p/"+tc.query, &f.admin, "")
			if code != tc.code || tc.code == 200 && body != tc.want || !strings.Contains(body, tc.want) {
				t.Errorf("= %d %q, want %d %q", code, body, tc.code, tc.want)
			}
		})
	}
}

func (f *fixture) config() *rest.Config {
	return &rest.Config{Host: f.url, TLSClientConfig: rest.TLSClientConfig{
		CAData: f.cluster.CA.PEM(), CertData: testcluster.CertPEM(f.admin), KeyData: testcluster.KeyPEM(f.t, f.admin),
	}}
}

type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s
	if !ok {
		return nil
	}
	return &size
}

func (f *fixture) testExec(t *testing.T) {
	run := func(path string, options remotecommand.StreamOptions) error {
		u, err := url.Parse(f.url + path)
		if err != nil {
			t.Fatal(err)
		}
		executor, err := remotecommand.NewSPDYExecutor(f.config(), "POST", u)
		if err != nil {
			t.Fatal(err)
		}
		return executor.StreamWithContext(t.Context(), options)
	}
	t.Run("streams", func(t *testing.T) {
		var out, errOut bytes.Buffer
		input := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		for _, path := range []string{"/exec/ns/p/runs", "/exec/ns/p/uid-1/runs"} {
			out.Reset()
			errOut.Reset()
			err := run(path+"?command=cat&input=1&output=1&error=1", remotecommand.StreamOptions{Stdin: bytes.NewReader(input), Stdout: &out, Stderr: &errOut})
			if err != nil || !bytes.Equal(out.Bytes(), input) || errOut.String() != "done" {
				t.Errorf("%s: %v, %d bytes of %d, stderr %q", path, err, out.Len(), len(input), errOut.String())
			}
		}
	})
	t.Run("exit code", func(t *testing.T) {
		var exit utilexec.ExitError
		err := run("/exec/ns/p/runs?command=exit&output=1", remotecommand.StreamOptions{Stdout: io.Discard})
		if !errors.As(err, &exit) || exit.ExitStatus() != 42 {
			t.Errorf("error %v, want exit code 42", err)
		}
	})
	t.Run("cannot start", func(t *testing.T) {
		err := run("/exec/ns/p/runs?command=x&output=1", remotecommand.StreamOptions{Stdout: io.Discard})
		if err == nil || !strings.Contains(err.Error(), "cannot start") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		var out bytes.Buffer
		queue := make(sizes, 1)
		queue <- remotecommand.TerminalSize{Width: 80, Height: 24}
		defer close(queue)
		err := run("/exec/ns/p/runs?command=size&output=1&tty=1", remotecommand.StreamOptions{Stdout: &out, Tty: true, TerminalSizeQueue: queue})
		if err != nil || out.String() != "80x24 tty=true" {
			t.Errorf("%v, %q", err, out.String())
		}
	})
	t.Run("a terminal hangs up with its client", func(t *testing.T) {
		u, err := url.Parse(f.url + "/exec/ns/p/runs?command=wait&input=1&output=1&tty=1")
		if err != nil {
			t.Fatal(err)
		}
		executor, err := remotecommand.NewSPDYExecutor(f.config(), "POST", u)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		_ = executor.StreamWithContext(ctx, remotecommand.StreamOptions{
			Stdin: blockedReader{ctx}, Tty: true,
			Stdout: writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil }),
		})
		select {
		case <-f.backend.gone:
		case <-time.After(time.Minute):
			t.Error("the command goes on")
		}
	})
	t.Run("attach", func(t *testing.T) {
		var out bytes.Buffer
		err := run("/attach/ns/p/runs?output=1", remotecommand.StreamOptions{Stdout: &out})
		if err != nil || out.String() != "attached" {
			t.Errorf("%v, %q", err, out.String())
		}
	})
}

func (f *fixture) testPortForward(t *testing.T) {
	transport, upgrader, err := spdy.RoundTripperFor(f.config())
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(f.url + "/portForward/ns/p")
	if err != nil {
		t.Fatal(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	defer close(stop)
	forwarder, err := portforward.NewOnAddresses(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", u),
		[]string{"127.0.0.1"}, []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case <-time.After(time.Minute):
		t.Fatal("port-forward is not ready")
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "hello from 8080" {
		t.Errorf("= %q, %v", got, err)
	}
}

func (f *fixture) testMetrics(t *testing.T) {
	for path, wants := range map[string][]string{
		"/metrics": {
			"go_goroutines", "agents_own 7", "process_start_time_seconds", `kubelet_volume_stats_capacity_bytes{namespace="ns",persistentvolumeclaim="data"} 4096`,
			`kubelet_container_log_filesystem_used_bytes{container="runs",namespace="ns",pod="p",uid="uid-1"} 1.048576e+06`,
			`kubelet_volume_stats_inodes_used{namespace="ns",persistentvolumeclaim="data"} 3`, `kubelet_volume_stats_health_status_abnormal{namespace="ns",persistentvolumeclaim="data"} 1`,
		},
		"/metrics/resource": {"node_cpu_usage_seconds_total 2.5", `container_memory_working_set_bytes{container="runs",namespace="ns",pod="p"} 1.048576e+06`, `pod_cpu_usage_seconds_total{namespace="ns",pod="p"} 2.5`, "resource_scrape_error 0", `container_swap_usage_bytes{container="runs",namespace="ns",pod="p"} 4096`},
		"/metrics/probes":   {"process_start_time_seconds"},
		"/stats/summary":    {`"usageCoreNanoSeconds":2500000000`},
	} {
		code, body := f.do("GET", path, &f.admin, "")
		if code != 200 {
			t.Errorf("%s = %d %s", path, code, body)
		}
		for _, want := range wants {
			if !strings.Contains(body, want) {
				t.Errorf("%s lacks %q:\n%s", path, want, body)
			}
		}
	}
}

// blockedReader is a keyboard that nobody touches.
type blockedReader struct{ ctx context.Context }

func (r blockedReader) Read([]byte) (int, error) { <-r.ctx.Done(); return 0, io.EOF }

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
