package inmachine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vk-metal/vk-metal/tests/artifacts"
	"github.com/vk-metal/vk-metal/tests/rig"
)

// TestSystemd runs package systemd's tests on a real systemd, in a unit: what enters the
// machine from outside has neither its seccomp filter nor its cgroups.
func TestSystemd(t *testing.T) { runSystemdTests(t, boot(t, rig.MachineConfig{Name: "metal-0"}), 1) }

// TestSystemdV2 runs them on systemd 257 and cgroup v2, in a virtual machine.
func TestSystemdV2(t *testing.T) {
	if os.Getenv("VK_METAL_TEST_V2") == "" {
		t.Skip("boots a virtual machine, slow: set VK_METAL_TEST_V2=1")
	}
	runSystemdTests(t, boot(t, rig.MachineConfig{Name: "virtual-0", VM: true}), 10)
}

func runSystemdTests(t *testing.T, m *rig.Machine, slowness int) {
	t.Helper()
	dir := t.TempDir()
	root := checkout(t)
	compile(t, root, "test", "-c", "-o", filepath.Join(dir, "systemd.test"), "./systemd")
	compile(t, root, "build", "-o", filepath.Join(dir, "vk-metal-launch"), "./cmd/vk-metal-launch")
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	for src, dst := range map[string]string{
		filepath.Join(dir, "systemd.test"):    "/opt/systemd.test",
		filepath.Join(dir, "vk-metal-launch"): "/usr/lib/vk-metal/vk-metal-launch",
		busybox:                               "/opt/busybox",
	} {
		if err := m.CopyIn(timed(t, 5*time.Minute), src, dst); err != nil {
			t.Fatal(err)
		}
	}
	// Not --wait: a test restarts the bus, and systemd-run would end with it, without a word.
	run(t, m, "systemd-run", "--quiet", "--collect", "--unit=vk-metal-test",
		"--property=TasksMax=infinity", "--property=WorkingDirectory=/opt", "--property=StateDirectory=vk-metal",
		"--setenv=VK_METAL_REQUIRE=all", "--setenv=VK_METAL_TEST_BUSYBOX=/opt/busybox",
		fmt.Sprintf("--setenv=VK_METAL_TEST_SLOWNESS=%d", slowness),
		"bash", "-c", "/opt/systemd.test -test.v -test.timeout=30m >/opt/output 2>&1; echo $? >/opt/code.new; mv /opt/code.new /opt/code")
	var out bytes.Buffer
	err = m.Exec(timed(t, 31*time.Minute), rig.Command{
		Argv:   []string{"bash", "-c", "until [ -e /opt/code ]; do sleep 0.2; done; cat /opt/output; exit $(cat /opt/code)"},
		Stdout: &out, Stderr: &out,
	})
	if err == nil && !strings.HasSuffix(out.String(), "\nPASS\n") {
		err = errors.New("the tests did not come to their end")
	}
	for line := range strings.Lines(out.String()) {
		if err != nil || strings.HasPrefix(line, "---") {
			t.Log(strings.TrimRight(line, "\n"))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, m *rig.Machine, argv ...string) {
	t.Helper()
	if err := m.Exec(timed(t, time.Minute), rig.Command{Argv: argv}); err != nil {
		t.Fatal(err)
	}
}

func checkout(t *testing.T) string {
	t.Helper()
	root, err := artifacts.Root()
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func compile(t *testing.T, root string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(timed(t, 10*time.Minute), "go", args...)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %v: %v\n%s", args, err, out)
	}
}

func boot(t *testing.T, config rig.MachineConfig) *rig.Machine {
	t.Helper()
	require(t)
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
	m, err := r.AddMachine(timed(t, 15*time.Minute), config)
	if err == nil {
		err = m.Start(timed(t, time.Minute))
	}
	if err == nil {
		err = m.WaitBooted(timed(t, 5*time.Minute))
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func saveLogs(t *testing.T, r *rig.Rig) {
	t.Helper()
	dir, err := os.MkdirTemp("", "inmachine-")
	if err == nil {
		err = r.CollectLogs(timed(t, time.Minute), dir)
	}
	t.Logf("logs are in %s (%v)", dir, err)
}

func require(t *testing.T) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "needs root"
	}
	for _, tool := range []string{"systemd-nspawn", "debootstrap", "busybox"} {
		if _, err := exec.LookPath(tool); err != nil {
			why = "needs " + tool
		}
	}
	switch {
	case testing.Short():
		t.Skip("boots machines: not in short mode")
	case why != "" && os.Getenv("VK_METAL_REQUIRE") == "all":
		t.Fatal(why)
	case why != "":
		t.Skip(why)
	}
}

func timed(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

type writer struct{ t *testing.T }

// Write logs a line of progress.
func (w writer) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}
