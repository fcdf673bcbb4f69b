package systemd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/internal/paths"
)

// machine is a real systemd to test against: this process runs on it as root. The test
// binary is built with `go test -c` and run inside a throw-away machine.
type machine struct {
	t       testing.TB
	ctx     context.Context
	manager *Manager
	layout  paths.Layout
	root    string // an unpacked image with a static busybox
}

// need skips the test, or fails it where VK_METAL_REQUIRE says that nothing may be skipped.
func need(t testing.TB, ok bool, what string) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("VK_METAL_REQUIRE") == "all" {
		t.Fatalf("required, but missing: %s", what)
	}
	t.Skipf("needs %s", what)
}

func envOr(name, fallback string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return fallback
}

// patience is a time-out on the machine at hand: VK_METAL_TEST_SLOWNESS says how many times
// slower than usual it is.
func patience(d time.Duration) time.Duration {
	if factor, err := strconv.Atoi(os.Getenv("VK_METAL_TEST_SLOWNESS")); err == nil && factor > 1 {
		return d * time.Duration(factor)
	}
	return d
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	comm, _ := os.ReadFile("/proc/1/comm")
	need(t, strings.TrimSpace(string(comm)) == "systemd" && os.Getuid() == 0, "root and systemd as PID 1")
	launcher := envOr("VK_METAL_TEST_LAUNCHER", DefaultLauncher)
	_, err := os.Stat(launcher)
	need(t, err == nil, "the launcher at "+launcher)
	busybox, err := exec.LookPath(envOr("VK_METAL_TEST_BUSYBOX", "busybox"))
	need(t, err == nil, "a static busybox")

	ctx, cancel := context.WithTimeout(t.Context(), patience(5*time.Minute))
	t.Cleanup(cancel)
	base := envOr("VK_METAL_TEST_LIB", "/var/lib/vk-metal")
	lib, err := os.MkdirTemp(base, "test-")
	if err != nil {
		t.Fatal(err)
	}
	run, err := os.MkdirTemp("/run", "vk-metal-test-%n-") // nothing of it is expanded
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(lib); os.RemoveAll(run) })
	layout := paths.Default()
	layout.Lib, layout.Run = lib, run
	manager, err := NewManager(ctx, Options{Layout: layout, Launcher: launcher})
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, ctx: ctx, manager: manager, layout: layout, root: filepath.Join(lib, "rootfs")}
	m.makeRoot(busybox)
	return m
}

func (m *machine) makeRoot(busybox string) {
	m.t.Helper()
	for _, dir := range []string{"bin", "etc", "tmp", "root", "proc", "sys", "dev", "run"} {
		m.must(os.MkdirAll(filepath.Join(m.root, dir), 0o755))
	}
	data, err := os.ReadFile(busybox)
	m.must(err)
	m.must(os.WriteFile(filepath.Join(m.root, "bin/busybox"), data, 0o755))
	list, err := exec.Command(busybox, "--list").Output()
	m.must(err)
	for _, applet := range strings.Fields(string(list)) {
		if applet != "busybox" {
			m.must(os.Symlink("busybox", filepath.Join(m.root, "bin", applet)))
		}
	}
	m.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:1234:2345:web:/srv/web:/bin/sh\n", 0o644)
	m.file("etc/group", "root:x:0:\nweb:x:2345:\nextra:x:3456:root,web\n", 0o644)
	m.file("bin/notexec", "#!/bin/sh\n", 0o644)
	m.file("bin/notbinary", "\x00\x01\x02\x03", 0o755)
}

func (m *machine) file(name, content string, mode os.FileMode) {
	m.t.Helper()
	m.must(os.WriteFile(filepath.Join(m.root, name), []byte(content), mode))
}

func (m *machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

var lastUID atomic.Uint64

// attempt is one container attempt under test.
type attempt struct {
	m    *machine
	unit Unit
	spec *launchspec.Spec
}

func (m *machine) attempt(args ...string) *attempt {
	m.t.Helper()
	uid := fmt.Sprintf("%08x-0000-4000-8000-%012x", os.Getpid(), lastUID.Add(1))
	id := Identity{PodUID: uid, PodNamespace: "ns", PodName: "pod", Container: "c", SpecHash: "h", Image: "sha256:0"}
	dir := m.layout.AttemptRun(uid, "c", 0)
	layer := m.layout.Layer(uid, "c", 0)
	for _, d := range []string{dir, filepath.Join(layer, "upper"), filepath.Join(layer, "work")} {
		m.must(os.MkdirAll(d, 0o700))
	}
	m.must(os.Chmod(filepath.Join(layer, "upper"), 0o755))
	spec := &launchspec.Spec{
		Version: launchspec.Version, Pod: "ns/pod", PodUID: uid, Container: "c",
		Env:      bytesOf("PATH=/bin"),
		Root:     launchspec.Root{Lowers: []string{m.root}, Upper: filepath.Join(layer, "upper"), Work: filepath.Join(layer, "work")},
		Hostname: "box",
		Capabilities: []string{
			"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
			"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
		},
		ErrorRecord: m.layout.ErrorRecord(uid, "c", 0), ExitRecord: m.layout.ExitRecord(uid, "c", 0),
	}
	for _, arg := range args {
		spec.Args = append(spec.Args, []byte(arg))
	}
	a := &attempt{m: m, spec: spec, unit: Unit{
		Name: "vkm-" + uid + "-c-0.service", Slice: podSlice(uid), Description: "ns/pod c", Identity: id,
		LaunchSpec: m.layout.LaunchSpec(uid, "c", 0), ExitRecord: spec.ExitRecord,
	}}
	m.t.Cleanup(a.clean)
	return a
}

func podSlice(uid string) string {
	return "kubepods-besteffort-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice"
}

func bytesOf(values ...string) [][]byte {
	out := make([][]byte, len(values))
	for i, value := range values {
		out[i] = []byte(value)
	}
	return out
}

func (a *attempt) clean() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.m.ctx), patience(2*time.Minute))
	defer cancel()
	// The test's own context has ended by now, and the manager with it.
	manager, err := NewManager(ctx, a.m.manager.opts)
	if err != nil {
		a.m.t.Error(err)
		return
	}
	if err := errors.Join(manager.Remove(ctx, a.unit.Name), manager.RemoveSlice(ctx, a.unit.Slice)); err != nil {
		a.m.t.Error(err)
	}
}

// write puts the launch spec in place.
func (a *attempt) write() {
	a.m.t.Helper()
	data, err := json.Marshal(a.spec)
	a.m.must(err)
	a.m.must(os.WriteFile(a.unit.LaunchSpec, data, 0o600))
}

func (a *attempt) start() (Started, error) {
	a.m.t.Helper()
	a.write()
	return a.m.manager.Start(a.m.ctx, a.unit)
}

func (a *attempt) mustStart() Started {
	a.m.t.Helper()
	started, err := a.start()
	a.m.must(err)
	return started
}

// exit waits for the exit record.
func (a *attempt) exit() *launchspec.Exit {
	a.m.t.Helper()
	var exit *launchspec.Exit
	a.m.eventually("exit record of "+a.unit.Name, func() bool {
		var err error
		exit, err = readExit(a.spec.ExitRecord)
		return err == nil
	})
	return exit
}

func (m *machine) eventually(what string, ok func() bool) {
	m.t.Helper()
	limit := patience(2 * time.Minute)
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			m.t.Fatalf("not within %s: %s", limit, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// capture gives the attempt a stdout that the test reads; the function returned yields
// everything written once the attempt has ended.
func (a *attempt) capture() func() string {
	a.m.t.Helper()
	file := filepath.Join(filepath.Dir(a.unit.LaunchSpec), "out")
	a.m.must(unix.Mkfifo(file, 0o600))
	a.spec.Stdout, a.spec.Stderr = file, file
	fd, err := os.OpenFile(file, os.O_RDWR, 0)
	a.m.must(err)
	a.m.t.Cleanup(func() { fd.Close() })
	var mu sync.Mutex
	var collected strings.Builder
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := fd.Read(buf)
			mu.Lock()
			collected.Write(buf[:n])
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return func() string {
		a.exit()
		// Held open by us, the FIFO has no end of file: a mark of our own is the end.
		const mark = "\x00end of output\x00"
		_, err := fd.WriteString(mark)
		a.m.must(err)
		var output string
		a.m.eventually("the end of the output", func() (ok bool) {
			mu.Lock()
			defer mu.Unlock()
			output, ok = strings.CutSuffix(collected.String(), mark)
			return ok
		})
		return output
	}
}

// sh runs a shell script to its end and returns what it printed.
func (m *machine) sh(script string, change func(*attempt)) string {
	m.t.Helper()
	a := m.attempt("sh", "-c", script)
	if change != nil {
		change(a)
	}
	output := a.capture()
	a.mustStart()
	return output()
}
