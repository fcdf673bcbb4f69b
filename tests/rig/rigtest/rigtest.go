// Package rigtest boots machines for tests.
package rigtest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vk-metal/vk-metal/tests/rig"
)

// Require skips the test without root, without a tool on the host and in short mode, or fails it where
// nothing may be skipped (VK_METAL_REQUIRE=all).
func Require(t *testing.T, tools ...string) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots machines: not in short mode")
	}
	why := ""
	if os.Geteuid() != 0 {
		why = "needs root"
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			why = "needs " + tool
		}
	}
	switch {
	case why == "":
	case os.Getenv("VK_METAL_REQUIRE") == "all":
		t.Fatal(why)
	default:
		t.Skip(why)
	}
}

// Timed is a context that ends after d or with the test. It is there in cleanups, too.
func Timed(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// Boot boots one machine with nothing but Debian's base in a rig of its own. A test that
// fails leaves the machine's logs.
func Boot(t *testing.T, config rig.MachineConfig) *rig.Machine {
	t.Helper()
	Require(t, "systemd-nspawn", "debootstrap")
	r, err := rig.Up(Timed(t, 3*time.Minute), rig.Config{Dir: filepath.Join(t.TempDir(), "rig"), Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			saveLogs(t, r)
		}
		if err := r.Down(Timed(t, 5*time.Minute)); err != nil {
			t.Error(err)
		}
	})
	m, err := r.AddMachine(Timed(t, 15*time.Minute), config)
	if err == nil {
		err = m.Start(Timed(t, 3*time.Minute))
	}
	if err == nil {
		err = m.WaitBooted(Timed(t, 5*time.Minute))
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func saveLogs(t *testing.T, r *rig.Rig) {
	t.Helper()
	dir, err := os.MkdirTemp("", "machine-"+strings.ReplaceAll(t.Name(), "/", "-")+"-")
	if err == nil {
		err = r.CollectLogs(Timed(t, 3*time.Minute), dir)
	}
	t.Logf("logs are in %s (%v)", dir, err)
}
