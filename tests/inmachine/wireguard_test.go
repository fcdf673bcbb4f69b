package inmachine

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vk-metal/vk-metal/tests/rig"
	"github.com/vk-metal/vk-metal/tests/rig/rigtest"
)

// TestWireGuardV2 runs package wireguard's tests with the devices of Debian 13's kernel, in a
// virtual machine: first while its module cannot be loaded, then with it.
func TestWireGuardV2(t *testing.T) {
	if os.Getenv("VK_METAL_TEST_V2") == "" {
		t.Skip("boots a virtual machine, slow: set VK_METAL_TEST_V2=1")
	}
	m := bootMachine(t, rig.MachineConfig{Name: "virtual-1", VM: true})
	binary := filepath.Join(t.TempDir(), "wireguard.test")
	compile(t, checkout(t), "test", "-c", "-o", binary, "./hostgw/wireguard")
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	for src, dst := range map[string]string{binary: "/opt/wireguard.test", busybox: "/usr/local/sbin/sysctl"} {
		if err := m.CopyIn(rigtest.Timed(t, 5*time.Minute), src, dst); err != nil {
			t.Fatal(err)
		}
	}
	run(t, m, "apt-get", "-q", "-y", "install", "iproute2", "nftables")
	run(t, m, "sh", "-c", "echo install wireguard /bin/false >/etc/modprobe.d/none.conf")
	wireguardTests(t, m, "none", "^TestUnsupported$")
	run(t, m, "rm", "/etc/modprobe.d/none.conf")
	wireguardTests(t, m, "kernel", ".")
}

func wireguardTests(t *testing.T, m *rig.Machine, backend, which string) {
	t.Helper()
	var out bytes.Buffer
	err := m.Exec(rigtest.Timed(t, 15*time.Minute), rig.Command{
		Argv:   []string{"env", "VK_METAL_REQUIRE=all", "VK_METAL_TEST_WIREGUARD=" + backend, "/opt/wireguard.test", "-test.v", "-test.timeout=14m", "-test.run=" + which},
		Stdout: &out, Stderr: &out,
	})
	for line := range strings.Lines(out.String()) {
		if err != nil || strings.HasPrefix(line, "---") || strings.Contains(line, " lost") || strings.Contains(line, "the kernel's") {
			t.Log(strings.TrimRight(line, "\n"))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}
