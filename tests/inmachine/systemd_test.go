package inmachine

import (
	"bytes"
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
	"github.com/vk-metal/vk-metal/tests/rig/rigtest"
)

// TestSystemd runs package systemd's tests on a real systemd, in a unit: what enters the
// machine from outside has neither its seccomp filter nor its cgroups.
func TestSystemd(t *testing.T) {
	runSystemdTests(t, bootMachine(t, rig.MachineConfig{Name: "metal-0"}), 1)
}

// TestSystemdV2 runs them on systemd 257 and cgroup v2, in a virtual machine.
func TestSystemdV2(t *testing.T) {
	if os.Getenv("VK_METAL_TEST_V2") == "" {
		t.Skip("boots a virtual machine, slow: set VK_METAL_TEST_V2=1")
	}
	runSystemdTests(t, bootMachine(t, rig.MachineConfig{Name: "virtual-0", VM: true}), 10)
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
		if err := m.CopyIn(rigtest.Timed(t, 5*time.Minute), src, dst); err != nil {
			t.Fatal(err)
		}
	}
	// Not --wait: a test restarts the bus, and systemd-run would end with it, without a word.
	run(t, m, "systemd-run", "--quiet", "--collect", "--unit=vk-metal-test",
		"--property=TasksMax=infinity", "--property=WorkingDirectory=/opt", "--property=StateDirectory=vk-metal",
		"--setenv=VK_METAL_REQUIRE=all", "--setenv=VK_METAL_TEST_BUSYBOX=/opt/busybox",
		fmt.Sprintf("--setenv=VK_METAL_TEST_SLOWNESS=%d", slowness),
		"bash", "-c", "/opt/systemd.test -test.v -test.timeout=50m >/opt/output 2>&1; echo $? >/opt/code.new; mv /opt/code.new /opt/code")
	var out bytes.Buffer
	err = m.Exec(rigtest.Timed(t, 51*time.Minute), rig.Command{
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
	if err := m.Exec(rigtest.Timed(t, 3*time.Minute), rig.Command{Argv: argv}); err != nil {
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
	cmd := exec.CommandContext(rigtest.Timed(t, 10*time.Minute), "go", args...)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %v: %v\n%s", args, err, out)
	}
}

func bootMachine(t *testing.T, config rig.MachineConfig) *rig.Machine {
	t.Helper()
	rigtest.Require(t, "busybox")
	return rigtest.Boot(t, config)
}
