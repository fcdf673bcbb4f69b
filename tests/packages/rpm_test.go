package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vk-metal/vk-metal/tests/rig/rigtest"
)

// TestRPM installs, upgrades and erases the rpm in an rpm root of its own, with Debian's
// rpm and a systemctl that only writes down what it is told. What it cannot show, a real
// Fedora or RHEL with its SELinux and dependencies, is not tested.
func TestRPM(t *testing.T) {
	rigtest.Require(t, "rpm", "busybox", "make")
	rpms := build(t, "*.rpm")
	root := rpmRoot(t)
	rpm := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(rigtest.Timed(t, 3*time.Minute), "rpm", append([]string{"--root", root, "--dbpath", "/var/lib/rpm"}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("rpm %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	rpm("--initdb")
	requires := rpm("-qp", "--requires", rpms[0])
	for _, want := range []string{"systemd >= 252\n", "dbus\n", "ca-certificates\n"} {
		if !strings.Contains(requires, want) {
			t.Errorf("requires %q, want %q among them", requires, want)
		}
	}
	rpm("-i", "--nodeps", rpms[0])
	for _, file := range []string{
		"/usr/bin/vk-metal", "/usr/lib/vk-metal/vk-metal-launch", "/usr/lib/vk-metal/vk-metal-log",
		"/usr/lib/systemd/system/vk-metal.service", "/usr/lib/tmpfiles.d/vk-metal.conf", "/etc/vk-metal",
		"/usr/share/vk-metal/manifests/node-rbac.yaml", "/usr/share/vk-metal/manifests/controller.yaml",
	} {
		if _, err := os.Stat(filepath.Join(root, file)); err != nil {
			t.Error(err)
		}
	}
	told(t, root, "--no-reload --quiet preset vk-metal-log.service vk-metal.service", "daemon-reload")
	writeFile(t, filepath.Join(root, "etc/vk-metal/config.yaml"), "# test\n", 0o644)
	rpm("-U", "--nodeps", rpms[1])
	if got := rpm("-q", "vk-metal"); !strings.HasPrefix(got, "vk-metal-0.0.2-") {
		t.Errorf("after the upgrade: %s", got)
	}
	told(t, root, "daemon-reload", "try-restart vk-metal-log.service", "--no-block try-restart vk-metal.service", "daemon-reload")
	rpm("-e", "vk-metal")
	told(t, root, "stop vk-metal.service", "--no-reload --quiet disable vk-metal.service vk-metal-log.service", "daemon-reload")
	if _, err := os.Stat(filepath.Join(root, "etc/vk-metal/config.yaml")); err != nil {
		t.Error("the configuration was lost:", err)
	}
	if _, err := os.Stat(filepath.Join(root, "usr/bin/vk-metal")); err == nil {
		t.Error("the agent is still there")
	}
}

// rpmRoot has what the scriptlets need: a shell and the recorder.
func rpmRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"bin", "usr/bin", "usr/sbin", "run/systemd/system", "var/lib/rpm", "tmp", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(root, "bin/sh"), string(data), 0o755)
	writeFile(t, filepath.Join(root, "usr/bin/systemctl"), "#!/bin/sh\necho \"$@\" >>/tmp/told\n", 0o755)
	return root
}

// told compares what systemctl was told since the last call.
func told(t *testing.T, root string, want ...string) {
	t.Helper()
	path := filepath.Join(root, "tmp/told")
	got, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	if strings.TrimSpace(string(got)) != strings.Join(want, "\n") {
		t.Errorf("systemctl was told %q, want %q", got, want)
	}
	_ = os.Remove(path)
}

func writeFile(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}
