package rig

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestVirtualMachine is the smoke test of the slow flavour: cgroup v2, Debian 13, a kernel
// of its own, in the same rack as a container. It takes minutes: make test-v2.
func TestVirtualMachine(t *testing.T) {
	if os.Getenv("VK_METAL_TEST_V2") == "" {
		t.Skip("runs with VK_METAL_TEST_V2=1 only: software emulation is slow")
	}
	r := newRig(t, Config{})
	peer := boot(t, r, MachineConfig{Name: "metal-0"})[0]
	m, err := r.AddMachine(testContext(t, 20*time.Minute), MachineConfig{Name: "metal-v2", VM: true})
	if err != nil {
		t.Fatal(err)
	}
	start := func() {
		t.Helper()
		began := time.Now()
		if err := errors.Join(m.Start(testContext(t, 3*time.Minute)), m.WaitBooted(testContext(t, 5*time.Minute))); err != nil {
			t.Fatal(err)
		}
		t.Logf("booted in %s", time.Since(began))
	}
	start()
	t.Run("system", func(t *testing.T) {
		for script, want := range map[string]string{
			"cat /proc/1/comm; hostname; stat -f -c %T /sys/fs/cgroup /": "systemd\nmetal-v2\ncgroup2fs\next2/ext3",
			". /etc/os-release; echo $ID-$VERSION_ID":                    "debian-13",
			"ls /sys/class/net | tr '\\n' ' '":                           "eth0 lo",
			"cat /etc/machine-id":                                        m.record.MachineID,
			"systemctl list-units --failed --no-legend":                  "",
		} {
			if got := run(t, m, script); got != want {
				t.Errorf("%s: %q, want %q", script, got, want)
			}
		}
	})
	t.Run("limits", func(t *testing.T) {
		_, err := m.Run(testContext(t, 3*time.Minute), "systemd-run", "--wait", "-p", "MemoryMax=32M", "-p", "MemorySwapMax=0", "tail", "/dev/zero")
		if err == nil || !strings.Contains(err.Error(), "oom-kill") {
			t.Errorf("a unit that eats memory: %v, want oom-kill", err)
		}
	})
	t.Run("commands", func(t *testing.T) { testCommands(t, m) })
	t.Run("files", func(t *testing.T) { testFiles(t, m) })
	t.Run("install", func(t *testing.T) {
		if err := m.InstallDeb(testContext(t, 5*time.Minute), buildDeb(t, "rig-good", "nftables, iproute2")); err != nil {
			t.Fatal(err)
		}
		if got := run(t, m, "nft add table inet t; nft list tables"); got != "table inet t" {
			t.Errorf("nft: %q", got)
		}
	})
	reach := func() error {
		_, err := m.Run(testContext(t, 3*time.Minute), "bash", "-c", "timeout 5 bash -c '</dev/tcp/"+peer.V4.String()+"/9999'")
		return err
	}
	t.Run("network", func(t *testing.T) {
		listenIn(t, peer.endpoint(), 9999)
		if err := reach(); err != nil {
			t.Error(err)
		}
		if err := m.Partition(testContext(t, 3*time.Minute)); err != nil {
			t.Fatal(err)
		}
		if err := reach(); err == nil {
			t.Error("a partitioned machine reaches another")
		}
		if err := m.Heal(testContext(t, 3*time.Minute)); err != nil {
			t.Fatal(err)
		}
		waitUntil(t, "the partition to heal", func() bool { return reach() == nil })
	})
	t.Run("reboot", func(t *testing.T) {
		run(t, m, "touch /var/kept /run/lost; sync; systemd-run --unit=lost sleep 1000")
		before := run(t, m, "cat /proc/sys/kernel/random/boot_id")
		if err := m.Reboot(testContext(t, 3*time.Minute)); err != nil {
			t.Fatal(err)
		}
		if err := m.WaitBooted(testContext(t, 5*time.Minute)); err != nil {
			t.Fatal(err)
		}
		assertRebooted(t, m, before)
	})
	t.Run("power cut", func(t *testing.T) {
		run(t, m, "touch /var/kept /run/lost; sync")
		before := run(t, m, "cat /proc/sys/kernel/random/boot_id")
		if err := m.PowerCut(testContext(t, 3*time.Minute)); err != nil {
			t.Fatal(err)
		}
		start()
		assertRebooted(t, m, before)
	})
	t.Run("stop", func(t *testing.T) {
		if err := m.Stop(testContext(t, 3*time.Minute)); err != nil {
			t.Fatal(err)
		}
		if st, n, err := m.State(testContext(t, 3*time.Minute)); st != MachineOff || n != 3 || err != nil {
			t.Errorf("State() = %s, %d, %v", st, n, err)
		}
	})
}

// unifiedTests are those that TestRigOnUnifiedHost repeats.
const unifiedTests = "TestMachines|TestProcesses"

// TestRigOnUnifiedHost runs this package's own machines on a host with cgroup v2 and
// systemd as PID 1: a virtual machine.
func TestRigOnUnifiedHost(t *testing.T) {
	if os.Getenv("VK_METAL_TEST_V2") == "" {
		t.Skip("runs with VK_METAL_TEST_V2=1 only: software emulation is slow")
	}
	r := newRig(t, Config{})
	m := boot(t, r, MachineConfig{Name: "host-v2", VM: true})[0]
	ctx := testContext(t, 50*time.Minute)
	base, err := EnsureRoot(ctx, DefaultRoot(), testWriter{t})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.CopyIn(ctx, base, "/var/cache/vk-metal-rig/roots/"+filepath.Base(base)); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.CopyIn(ctx, exe, "/opt/rig.test"); err != nil {
		t.Fatal(err)
	}
	out, err := m.Run(ctx, "sh", "-c", "apt-get -y -q install systemd-container debootstrap iproute2 >/dev/null && cd /opt && "+
		"VK_METAL_REQUIRE=all VK_METAL_TEST_SLOWNESS=5 TMPDIR=/var/tmp ./rig.test -test.v -test.run '"+unifiedTests+"' 2>&1")
	t.Log(out)
	if err != nil {
		t.Error(err)
	}
}
