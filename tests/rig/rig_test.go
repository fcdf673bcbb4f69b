package rig

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// replaceDir puts a test's directory into a fixture.
func replaceDir(content, dir string) string { return strings.ReplaceAll(content, "DIR", dir) }

// require skips a test on a host that cannot run machines, or fails where the
// environment says that it should.
func require(t *testing.T) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "needs root"
	}
	for _, tool := range []string{"systemd-nspawn", "debootstrap", "nsenter", "journalctl"} {
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

// testContext ends before the test's own time-out would hide what went wrong. On emulated
// processors all takes longer: VK_METAL_TEST_SLOWNESS says how many times.
func testContext(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	if factor, err := strconv.Atoi(os.Getenv("VK_METAL_TEST_SLOWNESS")); err == nil && factor > 1 {
		d *= time.Duration(factor)
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// newRig makes a rig that is taken down at the end; a failed test keeps its logs.
func newRig(t *testing.T, cfg Config) *Rig {
	t.Helper()
	require(t)
	cfg.Dir = filepath.Join(t.TempDir(), "rig")
	cfg.Progress = testWriter{t}
	r, err := Up(testContext(t, 3*time.Minute), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			saveLogs(t, r)
		}
		if err := r.Down(testContext(t, 5*time.Minute)); err != nil {
			t.Error(err)
		}
	})
	return r
}

// saveLogs collects what explains a failure and says where it is.
func saveLogs(t *testing.T, r *Rig) {
	t.Helper()
	dir, err := os.MkdirTemp("", "rig-"+strings.ReplaceAll(t.Name(), "/", "-")+"-") //nolint:usetesting // outlives the test
	if err != nil {
		t.Log(err)
		return
	}
	if err := r.CollectLogs(testContext(t, 3*time.Minute), dir); err != nil {
		t.Log(err)
	}
	t.Logf("logs are in %s", dir)
}

type testWriter struct{ t *testing.T }

// Write logs a line of progress.
func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// boot adds machines, starts them and waits for them.
func boot(t *testing.T, r *Rig, cfgs ...MachineConfig) []*Machine {
	t.Helper()
	var ms []*Machine
	for _, cfg := range cfgs {
		m, err := r.AddMachine(testContext(t, 10*time.Minute), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Start(testContext(t, 3*time.Minute)); err != nil {
			t.Fatal(err)
		}
		ms = append(ms, m)
	}
	for _, m := range ms {
		if err := m.WaitBooted(testContext(t, 5*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	return ms
}

// run runs a shell script in a machine and returns its output.
func run(t *testing.T, m *Machine, script string) string {
	t.Helper()
	out, err := m.Run(testContext(t, 3*time.Minute), "/bin/sh", "-ec", script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}
