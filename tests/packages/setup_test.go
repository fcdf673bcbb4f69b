package packages

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vk-metal/vk-metal/tests/artifacts"
	"github.com/vk-metal/vk-metal/tests/rig"
	"github.com/vk-metal/vk-metal/tests/rig/rigtest"
)

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
		cmd := exec.CommandContext(rigtest.Timed(t, 15*time.Minute), "make", append([]string{"-s", "-C", root}, args...)...)
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

// bootMachine boots one machine with nothing but Debian's base.
func bootMachine(t *testing.T) *rig.Machine {
	t.Helper()
	rigtest.Require(t, "make")
	return rigtest.Boot(t, rig.MachineConfig{Name: "metal-0"})
}

// run runs a script in the machine and returns its output without the last newline.
func run(t *testing.T, m *rig.Machine, script string) string {
	t.Helper()
	out, err := m.Run(rigtest.Timed(t, 3*time.Minute), "/bin/sh", "-ec", script)
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
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if _, last = m.Run(rigtest.Timed(t, 3*time.Minute), "/bin/sh", "-ec", script); last == nil {
			return
		}
	}
	t.Fatalf("%s\ndoes not come true: %v", script, last)
}
