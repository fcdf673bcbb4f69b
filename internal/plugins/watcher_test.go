package plugins

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds waits for what has no bound of its own.
const patience = time.Minute

// plugin is a plugin's registration side.
type plugin struct {
	registerapi.UnimplementedRegistrationServer
	info *registerapi.PluginInfo
	told chan *registerapi.RegistrationStatus
}

func (p *plugin) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return p.info, nil
}

func (p *plugin) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	p.told <- s
	return &registerapi.RegistrationStatusResponse{}, nil
}

// serve listens on socket until stop, which also removes the socket.
func serve(t *testing.T, socket string, info *registerapi.PluginInfo) (p *plugin, stop func()) {
	t.Helper()
	p = &plugin{info: info, told: make(chan *registerapi.RegistrationStatus, 100)}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	registerapi.RegisterRegistrationServer(server, p)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	stop = func() { server.Stop(); <-done }
	t.Cleanup(stop)
	return p, stop
}

// recorder is a handler that fails as often as it is told to.
type recorder struct {
	fail chan error
	seen chan string
}

func newRecorder() *recorder {
	return &recorder{fail: make(chan error, 10), seen: make(chan string, 100)}
}

func (r *recorder) Validate(_, _ string, versions []string) error {
	if len(versions) == 0 {
		return errors.New("no versions")
	}
	return nil
}

func (r *recorder) Register(_ context.Context, name, endpoint string, _ []string) error {
	select {
	case err := <-r.fail:
		return err
	default:
	}
	r.seen <- "+" + name + " " + endpoint
	return nil
}

func (r *recorder) Deregister(name, endpoint string) { r.seen <- "-" + name + " " + endpoint }

func receive[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatal("nothing came")
	}
	return v
}

func start(t *testing.T, dir string, handler Handler, change ...func(*Watcher)) {
	t.Helper()
	w := New(Options{Dir: dir, Handlers: map[string]Handler{"CSIPlugin": handler}, Retry: time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	for _, c := range change {
		c(w)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := receive(t, done); err != nil {
			t.Error(err)
		}
	})
	receive(t, w.Ready())
}

// shortDir is a directory whose sockets' names fit into sun_path.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "plg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestPluginsComeAndGo(t *testing.T) {
	dir := shortDir(t)
	info := &registerapi.PluginInfo{Type: "CSIPlugin", Name: "d.example", Endpoint: "/x/csi.sock", SupportedVersions: []string{"1.0.0"}}
	before, stopBefore := serve(t, filepath.Join(dir, "a.sock"), info)
	handler := newRecorder()
	start(t, dir, handler)
	if got := receive(t, handler.seen); got != "+d.example /x/csi.sock" {
		t.Errorf("a plugin that was there: %q", got)
	}
	if !receive(t, before.told).PluginRegistered {
		t.Error("it was not told of its success")
	}

	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(sub, "b.sock")
	_, stopAfter := serve(t, socket, &registerapi.PluginInfo{Type: "CSIPlugin", Name: "e.example", SupportedVersions: []string{"1.0.0"}})
	if got := receive(t, handler.seen); got != "+e.example "+socket {
		t.Errorf("a plugin that came, in a directory that came: %q", got)
	}

	stopBefore()
	if got := receive(t, handler.seen); got != "-d.example /x/csi.sock" {
		t.Errorf("a plugin whose socket has gone: %q", got)
	}
	stopAfter()
	if got := receive(t, handler.seen); got != "-e.example "+socket {
		t.Errorf("a plugin whose socket has gone: %q", got)
	}
	serve(t, socket, &registerapi.PluginInfo{Type: "CSIPlugin", Name: "f.example", SupportedVersions: []string{"1.0.0"}})
	if got := receive(t, handler.seen); got != "+f.example "+socket {
		t.Errorf("another plugin on the same socket: %q", got)
	}
}

func TestRefusedPluginsAreToldAndTriedAgain(t *testing.T) {
	dir := shortDir(t)
	handler := newRecorder()
	handler.fail <- errors.New("not now")
	start(t, dir, handler)
	p, _ := serve(t, filepath.Join(dir, "a.sock"), &registerapi.PluginInfo{Type: "CSIPlugin", Name: "d", SupportedVersions: []string{"1.0.0"}})
	if s := receive(t, p.told); s.PluginRegistered || s.Error == "" {
		t.Errorf("after a refusal it was told %v", s)
	}
	if s := receive(t, p.told); !s.PluginRegistered {
		t.Errorf("after the next try it was told %v", s)
	}
	for name, info := range map[string]*registerapi.PluginInfo{
		"type":     {Type: "Strange", Name: "x", SupportedVersions: []string{"1.0.0"}},
		"versions": {Type: "CSIPlugin", Name: "y"},
	} {
		p, _ := serve(t, filepath.Join(dir, name+".sock"), info)
		if s := receive(t, p.told); s.PluginRegistered || s.Error == "" {
			t.Errorf("wrong %s: it was told %v", name, s)
		}
	}
}

func TestOtherFilesAreNoPlugins(t *testing.T) {
	dir := shortDir(t)
	handler := newRecorder()
	if err := os.WriteFile(filepath.Join(dir, "file.sock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	serve(t, filepath.Join(dir, ".hidden.sock"), &registerapi.PluginInfo{Type: "CSIPlugin", Name: "hidden", SupportedVersions: []string{"1.0.0"}})
	start(t, dir, handler)
	serve(t, filepath.Join(dir, "z.sock"), &registerapi.PluginInfo{Type: "CSIPlugin", Name: "z", SupportedVersions: []string{"1.0.0"}})
	if got := receive(t, handler.seen); got != "+z "+filepath.Join(dir, "z.sock") {
		t.Errorf("got %q", got)
	}
}

// Containers of root's can take all inotify instances: plugins are found all the same.
func TestPluginsAreFoundWithoutInotify(t *testing.T) {
	dir := shortDir(t)
	handler := newRecorder()
	start(t, dir, handler, func(w *Watcher) {
		w.open, w.look = func() (*fsnotify.Watcher, error) { return nil, errors.New("too many open files") }, time.Millisecond
	})
	socket := filepath.Join(dir, "a.sock")
	_, stop := serve(t, socket, &registerapi.PluginInfo{Type: "CSIPlugin", Name: "a", SupportedVersions: []string{"1.0.0"}})
	if got := receive(t, handler.seen); got != "+a "+socket {
		t.Errorf("got %q", got)
	}
	stop()
	if got := receive(t, handler.seen); got != "-a "+socket {
		t.Errorf("got %q", got)
	}
}
