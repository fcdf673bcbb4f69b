package cluster

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vk-metal/vk-metal/tests/progress"
	"github.com/vk-metal/vk-metal/tests/rig"
)

// TestDownLeavesNothing boots a cluster of one node, removes it and looks at the host
// for what bears the rig's name. Run it with VK_METAL_E2E=1, as root.
func TestDownLeavesNothing(t *testing.T) {
	if os.Getenv("VK_METAL_E2E") == "" {
		t.Skip("boots a cluster: set VK_METAL_E2E=1")
	}
	dir, err := os.MkdirTemp(rig.CacheDir(), "test-cluster-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	t.Cleanup(func() { _ = Down(context.Background(), dir) }) // bounded by itself
	sysctls := read(t, "sysctl", "-n", "vm.overcommit_memory", "vm.panic_on_oom", "kernel.panic", "kernel.panic_on_oops",
		"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	c, err := Up(ctx, Options{Dir: dir, Nodes: 1, Progress: progress.New(t.Output())})
	if err != nil {
		t.Fatal(err)
	}
	id := c.Rig.ID()
	if !strings.Contains(leftOf(t, id, dir), id) {
		t.Fatal("the cluster is up and nothing on the host bears its name")
	}
	if err := Down(ctx, dir); err != nil {
		t.Fatal(err)
	}
	if left := leftOf(t, id, dir); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
	if after := read(t, "sysctl", "-n", "vm.overcommit_memory", "vm.panic_on_oom", "kernel.panic", "kernel.panic_on_oops",
		"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"); after != sysctls {
		t.Errorf("sysctls were\n%sand are\n%s", sysctls, after)
	}
	if err := Down(ctx, dir); err != nil {
		t.Errorf("a second Down: %v", err)
	}
}

// leftOf lists namespaces, links, mounts, cgroups and processes of a rig.
func leftOf(t *testing.T, id, dir string) string {
	t.Helper()
	var left strings.Builder
	for _, text := range []string{
		read(t, "ip", "netns", "list"), read(t, "ip", "-o", "link"), read(t, "cat", "/proc/mounts"),
		read(t, "find", "/sys/fs/cgroup", "-maxdepth", "3", "-type", "d"),
	} {
		for line := range strings.Lines(text) {
			if strings.Contains(line, id) || strings.Contains(line, dir) {
				left.WriteString(line)
			}
		}
	}
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range commands {
		if data, err := os.ReadFile(file); err == nil && strings.Contains(string(data), dir) {
			left.WriteString(file + " " + strings.ReplaceAll(string(data), "\x00", " ") + "\n")
		}
	}
	return left.String()
}

func read(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).Output()
	if err != nil {
		t.Fatalf("%v: %v", argv, err)
	}
	return string(out)
}
