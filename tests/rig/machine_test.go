package rig

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMachines boots machines in two racks once and asks everything of them.
func TestMachines(t *testing.T) {
	r := newRig(t, Config{Racks: []RackConfig{{Name: "rack-0"}, {Name: "rack-1"}}})
	ms := boot(t, r, MachineConfig{Name: "metal-0"}, MachineConfig{Name: "metal-1"}, MachineConfig{Name: "metal-2", Rack: "rack-1"})
	t.Run("system", func(t *testing.T) { testSystem(t, ms[0]) })
	t.Run("limits", func(t *testing.T) { testLimits(t, ms[0]) })
	t.Run("mounts", func(t *testing.T) { testMounts(t, ms[0]) })
	t.Run("commands", func(t *testing.T) { testCommands(t, ms[0]) })
	t.Run("files", func(t *testing.T) { testFiles(t, ms[0]) })
	t.Run("journal", func(t *testing.T) { testJournal(t, ms[0]) })
	t.Run("install", func(t *testing.T) { testInstall(t, ms[0]) })
	t.Run("network", func(t *testing.T) { testNetwork(t, r, ms) })
	t.Run("partition", func(t *testing.T) { testPartition(t, r, ms[0], ms[1]) })
	t.Run("reboot", func(t *testing.T) { testReboot(t, r, ms[0], ms[1]) })
	t.Run("loop devices", func(t *testing.T) { testLoops(t, ms[0]) })
	t.Run("power cut", func(t *testing.T) { testPowerCut(t, ms[0]) })
	t.Run("stop", func(t *testing.T) { testStop(t, ms[1]) })
	t.Run("logs", func(t *testing.T) { testLogs(t, r) })
}

// testSystem: systemd is PID 1, nothing failed, and it is a Debian of its own.
func testSystem(t *testing.T, m *Machine) {
	want := map[string]string{
		"cat /proc/1/comm":            "systemd",
		"hostname":                    m.Name,
		"systemctl is-system-running": "running",
		"busctl --system list | grep -c org.freedesktop.systemd1": "1",
		". /etc/os-release; echo $ID-$VERSION_ID":                 "debian-12",
		"test -e /usr/sbin/nft || echo absent":                    "absent",
		"stat -f -c %T /run":                                      "tmpfs",
		"cat /proc/sys/net/ipv4/ip_forward":                       "0",
		"ls /sys/class/net | tr '\\n' ' '":                        "eth0 lo",
		"cat /etc/machine-id":                                     m.record.MachineID,
		"test -d /var/log/journal && echo ok":                     "ok",
		"findmnt -n -o PROPAGATION /":                             "shared",
	}
	for script, out := range want {
		if got := run(t, m, script); got != out {
			t.Errorf("%s: %q, want %q", script, got, out)
		}
	}
}

// testLimits: the machine's own systemd sets limits that bind.
func testLimits(t *testing.T, m *Machine) {
	unit := []string{"systemd-run", "--wait", "--collect"}
	mem := append(append([]string{}, unit...), "-p", "MemoryMax=32M", "-p", "MemorySwapMax=0", "tail", "/dev/zero")
	start := time.Now()
	_, err := m.Run(testContext(t, 3*time.Minute), mem...)
	var exit *ExitError
	// Only with cgroup v2 does systemd know that it was the memory.
	if !errors.As(err, &exit) || !strings.Contains(exit.Stderr, "oom-kill") && !strings.Contains(exit.Stderr, "result: signal") {
		t.Errorf("a unit that eats memory with MemoryMax=32M: %v, want a kill", err)
	}
	t.Logf("killed after %s: %v", time.Since(start), err)
	script := `n=0; for i in 1 2 3 4 5 6 7 8; do sleep 100 & done 2>/dev/null; wait`
	pids := append(append([]string{}, unit...), "-p", "TasksMax=4", "/bin/sh", "-c", script)
	if _, err := m.Run(testContext(t, 3*time.Minute), pids...); !errors.As(err, &exit) {
		t.Errorf("a unit of 8 processes with TasksMax=4: %v, want a failure", err)
	}
	out := run(t, m, "systemd-run --wait --quiet --pipe -p CPUQuota=20% -p MemoryMax=64M cat /proc/self/cgroup")
	if !strings.Contains(out, ":memory:/system.slice/run-") && !strings.Contains(out, "0::/system.slice/run-") {
		t.Errorf("cgroups of a limited unit: %s", out)
	}
}

// testMounts: what an agent does with mounts works.
func testMounts(t *testing.T, m *Machine) {
	got := run(t, m, `
		d=/var/lib/vk-metal/test; mkdir -p $d/lower $d/upper $d/work $d/merged
		echo low >$d/lower/file
		mount -t overlay overlay -o lowerdir=$d/lower,upperdir=$d/upper,workdir=$d/work $d/merged
		echo high >$d/merged/other; cat $d/merged/file $d/upper/other
		mkdir -p $d/shared; mount -t tmpfs tmpfs $d/shared
		unshare -m --propagation slave sh -c "mount -t tmpfs inner $d/merged"
		grep -c "^inner" /proc/self/mounts || true
		umount $d/merged $d/shared; rm -rf $d`)
	if got != "low\nhigh\n0" {
		t.Errorf("mounts: %q", got)
	}
}

// testCommands: exit codes, streams, environment and directory are the command's own.
func testCommands(t *testing.T, m *Machine) {
	for _, tt := range []struct {
		argv []string
		code int
	}{
		{[]string{"true"}, 0},
		{[]string{"sh", "-c", "echo why >&2; exit 42"}, 42},
		{[]string{"sh", "-c", "kill -9 $$"}, 137},
		{[]string{"/no/such/program"}, 127},
	} {
		_, err := m.Run(testContext(t, 3*time.Minute), tt.argv...)
		var exit *ExitError
		if errors.As(err, &exit) {
			if exit.Code != tt.code {
				t.Errorf("%q: code %d, want %d", tt.argv, exit.Code, tt.code)
			}
		} else if err != nil || tt.code != 0 {
			t.Errorf("%q: %v, want code %d", tt.argv, err, tt.code)
		}
	}
	var out, errs bytes.Buffer
	err := m.Exec(testContext(t, 3*time.Minute), Command{
		Argv: []string{"sh", "-c", "cat; pwd; echo $X $PATH >&2"}, Env: []string{"X=a b"}, Dir: "/usr/lib",
		Stdin: strings.NewReader("in\n"), Stdout: &out, Stderr: &errs,
	})
	if err != nil || out.String() != "in\n/usr/lib\n" || !strings.HasPrefix(errs.String(), "a b /usr/local/sbin") {
		t.Errorf("Exec() = %v, stdout %q, stderr %q", err, &out, &errs)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := m.Run(ctx, "sleep", "4242"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run() over its deadline: %v", err)
	}
	waitUntil(t, "the command to be gone", func() bool {
		_, err := m.Run(testContext(t, 3*time.Minute), "sh", "-c", "! cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -q 'slee[p] 4242'")
		return err == nil
	})
}

// testFiles: copies keep content and mode both ways.
func testFiles(t *testing.T, m *Machine) {
	ctx := testContext(t, 3*time.Minute)
	dir := t.TempDir()
	data := bytes.Repeat([]byte{0, 1, '\n', 0xff}, 300_000)
	if err := os.WriteFile(filepath.Join(dir, "a b"), data, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := m.CopyIn(ctx, filepath.Join(dir, "a b"), "/opt/new/dir/file"); err != nil {
		t.Fatal(err)
	}
	if got := run(t, m, "stat -c '%a %U %s' /opt/new/dir/file; ls -A /opt/new/dir"); got != fmt.Sprintf("750 root %d\nfile", len(data)) {
		t.Errorf("copied in: %s", got)
	}
	if err := m.CopyOut(ctx, "/opt/new", filepath.Join(dir, "out", "tree")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "out/tree/dir/file")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("copied out: %d bytes, %v", len(got), err)
	}
	if err := m.WriteFile(ctx, "/etc/x/y", []byte("z\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := run(t, m, "stat -c %a /etc/x/y; cat /etc/x/y; ls -A /etc/x"); got != "600\nz\ny" {
		t.Errorf("WriteFile() made %q", got)
	}
}

// testJournal: the journal can be read and followed.
func testJournal(t *testing.T, m *Machine) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := m.FollowJournal(ctx, pw, "-n", "all", "-t", "rig-test")
		_ = pw.CloseWithError(err) // its reader must not wait for what is not to come
		done <- err
	}()
	run(t, m, "echo spoken | systemd-cat -t rig-test; systemd-run --wait --quiet --unit=speaker echo from a unit")
	lines := bufio.NewScanner(pr)
	for lines.Scan() && !strings.Contains(lines.Text(), "spoken") {
		t.Logf("before it: %s", lines.Text())
	}
	cancel()
	_ = pr.Close()
	if err := <-done; err != nil || lines.Err() != nil {
		t.Errorf("FollowJournal() = %v, %v", err, lines.Err())
	}
	got, err := m.Journal(testContext(t, 3*time.Minute), "speaker")
	if err != nil || !strings.Contains(got, "from a unit") || strings.Contains(got, "spoken") {
		t.Errorf("Journal() = %q, %v", got, err)
	}
}

// testInstall: apt resolves declared dependencies without a network, and names those
// that it cannot have.
func testInstall(t *testing.T, m *Machine) {
	ctx := testContext(t, 3*time.Minute)
	good := buildDeb(t, "rig-good", "nftables, ca-certificates, conntrack, iproute2")
	if err := m.InstallDeb(ctx, good); err != nil {
		t.Fatal(err)
	}
	got := run(t, m, "dpkg -s rig-good | grep ^Status; nft add table inet t; nft list tables; nft delete table inet t; ip -br link | wc -l")
	if got != "Status: install ok installed\ntable inet t\n2" {
		t.Errorf("after installation: %q", got)
	}
	bad := buildDeb(t, "rig-bad", "no-such-package")
	if err := m.InstallDeb(ctx, bad); err == nil || !strings.Contains(err.Error(), "no-such-package") {
		t.Errorf("InstallDeb() with a dependency that cannot be had: %v", err)
	}
}

// buildDeb makes an empty package.
func buildDeb(t *testing.T, name, depends string) string {
	t.Helper()
	dir := t.TempDir()
	control := fmt.Sprintf("Package: %s\nVersion: 1\nArchitecture: all\nMaintainer: rig <rig@example.invalid>\nDepends: %s\nDescription: test\n", name, depends)
	writeTestFile(t, filepath.Join(dir, name, "DEBIAN/control"), control)
	deb := filepath.Join(dir, name+"_1_all.deb")
	if out, err := exec.Command("dpkg-deb", "-b", filepath.Join(dir, name), deb).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v: %s", err, out)
	}
	return deb
}

// testNetwork: everything reaches everything, over both families.
func testNetwork(t *testing.T, r *Rig, ms []*Machine) {
	client, err := r.AddEndpoint(testContext(t, 3*time.Minute), "client", "rack-1")
	if err != nil {
		t.Fatal(err)
	}
	all := []Endpoint{r.Host(), r.Router(), client}
	for _, m := range ms {
		all = append(all, m.endpoint())
	}
	for _, to := range all {
		for _, from := range all {
			for _, addr := range []netip.Addr{to.V4, to.V6} {
				if err := dial(from, to, addr, patience); err != nil {
					t.Errorf("%s to %s (%s): %v", from.Name, to.Name, addr, err)
				}
			}
		}
	}
	if err := dial(ms[0].endpoint(), Endpoint{NetnsPath: ""}, netip.MustParseAddr("192.0.2.77"), time.Second); err == nil {
		t.Error("a machine reaches what lies beyond the rig")
	}
}

// endpoint is the machine's place in the network.
func (m *Machine) endpoint() Endpoint {
	return Endpoint{Name: m.Name, Rack: m.Rack, NetnsPath: netnsPath(m.rig.id, m.Name), V4: m.V4, V6: m.V6}
}

// patience is how long an answer may take that has to come.
const patience = 30 * time.Second

// dial connects from one namespace to a listener in another.
func dial(from, to Endpoint, addr netip.Addr, timeout time.Duration) error {
	var l net.Listener
	err := inNetns(to.NetnsPath, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	if err != nil {
		return err
	}
	defer l.Close()
	return inNetns(from.NetnsPath, func() error {
		// One address: the dial stays on this thread.
		conn, err := net.DialTimeout("tcp", l.Addr().String(), timeout)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
}

// testPartition: a partition is silent and heals; a pulled cable is seen.
func testPartition(t *testing.T, r *Rig, a, b *Machine) {
	ctx := testContext(t, 3*time.Minute)
	reach := func() error { return dial(b.endpoint(), a.endpoint(), a.V4, time.Second) }
	reached := func() bool { return reach() == nil }
	if err := a.Partition(ctx); err != nil {
		t.Fatal(err)
	}
	if err := reach(); err == nil {
		t.Error("a partitioned machine answers")
	}
	if got := run(t, a, "cat /sys/class/net/eth0/carrier"); got != "1" {
		t.Errorf("carrier in a partition: %s", got)
	}
	if err := a.Heal(ctx); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the partition to be healed", reached)
	if err := a.SetLink(ctx, false); err != nil {
		t.Fatal(err)
	}
	if got := run(t, a, "cat /sys/class/net/eth0/carrier"); got != "0" {
		t.Errorf("carrier with the cable pulled: %s", got)
	}
	if err := a.Heal(ctx); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the link to work again", reached)
	_ = r
}

// testReboot: disk and addresses stay; /run, processes and all network state go.
func testReboot(t *testing.T, r *Rig, m, peer *Machine) {
	ctx := testContext(t, 3*time.Minute)
	run(t, m, "touch /var/kept /run/lost; systemd-run --unit=lost sleep 1000; nft add table inet lost; ip link add lost type bridge")
	before := run(t, m, "cat /proc/sys/kernel/random/boot_id")
	start := time.Now()
	if err := m.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitBooted(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("reboot took %s", time.Since(start))
	assertRebooted(t, m, before)
	if got := run(t, m, "nft list tables; ip -br link show type bridge"); got != "" {
		t.Errorf("network state after a reboot: %s", got)
	}
	if err := dial(peer.endpoint(), m.endpoint(), m.V6, patience); err != nil {
		t.Errorf("after a reboot: %v", err)
	}
	run(t, m, "touch /run/lost; (sleep 3; systemctl reboot) >/dev/null 2>&1 &")
	waitUntil(t, "a reboot from inside", func() bool {
		_, n, err := m.State(ctx)
		return err == nil && n == 3
	})
	if err := m.WaitBooted(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Run(ctx, "test", "!", "-e", "/run/lost"); err != nil {
		t.Error(err)
	}
	if got := run(t, m, "journalctl -q --list-boots | wc -l"); got != "3" {
		t.Errorf("boots in the journal: %s", got)
	}
}

// assertRebooted checks that this is another boot of the same disk.
func assertRebooted(t *testing.T, m *Machine, before string) {
	t.Helper()
	got := run(t, m, "test -e /var/kept && echo kept; test -e /run/lost || echo gone; systemctl is-active lost || true")
	if got != "kept\ngone\ninactive" {
		t.Errorf("after a reboot: %q", got)
	}
	if now := run(t, m, "cat /proc/sys/kernel/random/boot_id"); now == before {
		t.Errorf("boot id is %s as before", now)
	}
}

// testPowerCut: the machine is gone at once and starts again from its disk.
func testPowerCut(t *testing.T, m *Machine) {
	ctx := testContext(t, 3*time.Minute)
	run(t, m, "touch /var/kept /run/lost; systemd-run --unit=lost sleep 1000")
	before := run(t, m, "cat /proc/sys/kernel/random/boot_id")
	start := time.Now()
	if err := m.PowerCut(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("power cut took %s", time.Since(start))
	if st, _, err := m.State(ctx); st != MachineOff || err != nil {
		t.Errorf("State() = %s, %v", st, err)
	}
	if _, err := m.Run(ctx, "true"); err == nil {
		t.Error("a machine that is off runs a command")
	}
	if _, err := os.Stat(netnsPath(m.rig.id, m.Name)); err == nil {
		t.Error("a machine that is off has a network namespace")
	}
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitBooted(ctx); err != nil {
		t.Fatal(err)
	}
	assertRebooted(t, m, before)
}

// testStop: a clean stop runs the units' stop commands.
func testStop(t *testing.T, m *Machine) {
	ctx := testContext(t, 3*time.Minute)
	run(t, m, "systemd-run --unit=last -p ExecStop='/bin/touch /var/stopped-cleanly' sleep 1000")
	start := time.Now()
	if err := m.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("stop took %s", time.Since(start))
	if _, err := os.Stat(filepath.Join(m.Root(), "var/stopped-cleanly")); err != nil {
		t.Error(err)
	}
	if err := m.Stop(ctx); err != nil {
		t.Errorf("Stop() of a machine that is off: %v", err)
	}
	if err := m.WaitBooted(ctx); err == nil {
		t.Error("WaitBooted() of a machine that is off succeeds")
	}
}

// testLogs: one machine is on, one is off; both leave a journal.
func testLogs(t *testing.T, r *Rig) {
	dir := t.TempDir()
	if err := r.CollectLogs(testContext(t, 3*time.Minute), dir); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"metal-0/journal.log", "metal-0/units.txt", "metal-0/console.log", "metal-1/journal.log", "machine-metal-0.log"} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Size() == 0 {
			t.Errorf("log %s: %v", name, err)
		}
	}
}

// waitUntil polls a condition.
func waitUntil(t *testing.T, what string, done func() bool) {
	t.Helper()
	err := poll(testContext(t, 3*time.Minute), 20*time.Millisecond, func() (bool, error) { return done(), nil })
	if err != nil {
		t.Fatalf("wait for %s: %v", what, err)
	}
}

// listenIn accepts connections in a namespace until the test ends.
func listenIn(t *testing.T, e Endpoint, port uint16) {
	t.Helper()
	var l net.Listener
	err := inNetns(e.NetnsPath, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(e.V4, port).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
}

// testLoops: a machine attaches files to the host's loop devices, and has none when it starts
// anew, also if they were mounted when its power went.
func testLoops(t *testing.T, m *Machine) {
	ctx := testContext(t, 3*time.Minute)
	file := "/srv/" + m.record.MachineID
	run(t, m, fmt.Sprintf("truncate -s 8M %[1]s-disk && mkfs.ext4 -q %[1]s-disk && mount -o loop %[1]s-disk /mnt && touch /mnt/file", file))
	run(t, m, fmt.Sprintf("truncate -s 1M %[1]s-raw && losetup --find %[1]s-raw", file))
	attached := func() (files []string) {
		names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if seen, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(seen), file) {
				files = append(files, string(seen))
			}
		}
		return files
	}
	if files := attached(); len(files) != 2 {
		t.Fatalf("attached are %q, want 2 files", files)
	}
	if err := m.PowerCut(ctx); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "no loop devices without their machine", func() bool { return len(attached()) == 0 })
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitBooted(ctx); err != nil {
		t.Fatal(err)
	}
}
