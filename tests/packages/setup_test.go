package packages

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vk-metal/vk-metal/tests/artifacts"
	"github.com/vk-metal/vk-metal/tests/rig"
)

// require skips, or fails where nothing may be skipped.
func require(t *testing.T, tools ...string) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "needs root"
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			why = "needs " + tool
		}
	}
	if testing.Short() {
		why = "boots machines: not in short mode"
	}
	if why == "" {
		return
	}
	if os.Getenv("VK_METAL_REQUIRE") == "all" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// versions are packages of one build, the second an upgrade of the first.
var versions = []string{"v0.0.1", "v0.0.2"}

// build packs both versions and returns the files that match the pattern, in order.
func build(t *testing.T, pattern string) []string {
	t.Helper()
	root, err := artifacts.Root()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	make := func(args ...string) {
		cmd := exec.CommandContext(timed(t, 15*time.Minute), "make", append([]string{"-s", "-C", root}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make %v: %v\n%s", args, err, out)
		}
	}
	make("build")
	for _, version := range versions {
		make("nfpm", "VERSION="+version, "DIST="+dir)
	}
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(files) != len(versions) {
		t.Fatalf("packages %q, %v", files, err)
	}
	return files
}

func timed(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// bootMachine boots one machine with nothing but Debian's base.
func bootMachine(t *testing.T) *rig.Machine {
	t.Helper()
	require(t, "systemd-nspawn", "debootstrap", "make")
	r, err := rig.Up(timed(t, time.Minute), rig.Config{Dir: filepath.Join(t.TempDir(), "rig"), Progress: writer{t}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			saveLogs(t, r)
		}
		if err := r.Down(timed(t, 2*time.Minute)); err != nil {
			t.Error(err)
		}
	})
	m, err := r.AddMachine(timed(t, 15*time.Minute), rig.MachineConfig{Name: "metal-0"})
	if err == nil {
		err = m.Start(timed(t, time.Minute))
	}
	if err == nil {
		err = m.WaitBooted(timed(t, 2*time.Minute))
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func saveLogs(t *testing.T, r *rig.Rig) {
	t.Helper()
	dir, err := os.MkdirTemp("", "packages-"+t.Name()+"-")
	if err == nil {
		err = r.CollectLogs(timed(t, time.Minute), dir)
	}
	t.Logf("logs are in %s (%v)", dir, err)
}

type writer struct{ t *testing.T }

// Write logs a line of progress.
func (w writer) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// run runs a script in the machine and returns its output without the last newline.
func run(t *testing.T, m *rig.Machine, script string) string {
	t.Helper()
	out, err := m.Run(timed(t, time.Minute), "/bin/sh", "-ec", script)
	if err != nil {
		t.Fatalf("%s\n%v", script, err)
	}
	return strings.TrimSpace(out)
}

// expect compares a script's output.
func expect(t *testing.T, m *rig.Machine, script, want string) {
	t.Helper()
	if got := run(t, m, script); got != want {
		t.Errorf("%s\ngot  %q\nwant %q", script, got, want)
	}
}

// eventually runs a condition's script until it succeeds.
func eventually(t *testing.T, m *rig.Machine, script string) {
	t.Helper()
	var last error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if _, last = m.Run(timed(t, time.Minute), "/bin/sh", "-ec", script); last == nil {
			return
		}
	}
	t.Fatalf("%s\ndoes not come true: %v", script, last)
}
