package rig

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The environment of the test's own children.
const (
	envDownWorld = "VK_METAL_RIG_TEST_WORLD" // in namespaces of its own
	envDownBuild = "VK_METAL_RIG_TEST_BUILD" // the program that is killed while it builds
)

// TestDownLeavesNothing compares the whole world before and after, in mount, pid and
// network namespaces of its own, so that nothing else on the host changes there.
func TestDownLeavesNothing(t *testing.T) {
	require(t)
	if dir := os.Getenv(envDownBuild); dir != "" {
		buildAll(t, dir)
		return
	}
	if os.Getenv(envDownWorld) == "" {
		runInOwnWorld(t)
		return
	}
	base, err := os.MkdirTemp("/var/tmp", "rig-down-") //nolint:usetesting // t's lies in /tmp, which is covered below
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	tmpfs(t, "/run")
	tmpfs(t, "/tmp")
	// systemd-nspawn shares this one among all containers of a host and keeps it.
	if err := os.MkdirAll("/run/systemd/nspawn/propagate", 0o755); err != nil {
		t.Fatal(err)
	}
	t.Run("complete", func(t *testing.T) {
		testDown(t, filepath.Join(base, "complete"), func(dir string) { buildAll(t, dir) })
	})
	for _, delay := range []time.Duration{0, 10, 30, 60, 100, 200, 400, 800, 1600} {
		delay *= time.Millisecond
		t.Run("killed after "+delay.String(), func(t *testing.T) {
			testDown(t, filepath.Join(base, delay.String()), func(dir string) { buildAndDie(t, dir, delay) })
		})
	}
	t.Run("supervisor killed", func(t *testing.T) {
		testDown(t, filepath.Join(base, "supervisor"), func(dir string) {
			r := buildAll(t, dir)
			p, err := r.Process(supervisorName("metal-0"))
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Kill(p.PID, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		})
	})
}

// testDown builds a rig somehow and takes it down twice.
func testDown(t *testing.T, dir string, build func(dir string)) {
	before, others := observeWorld(t), otherRigs()
	build(dir)
	s, err := readState(dir)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Down(testContext(t, 3*time.Minute), dir); err != nil {
			t.Fatal(err)
		}
	}
	assertNoCgroups(t, s.ID)
	after, others := observeWorld(t), others || otherRigs()
	elsewhere := func(line string) bool {
		return others && strings.Contains(line, "_instances=") ||
			strings.Contains(line, netnsDir+"/vk") && !strings.Contains(line, s.ID)
	}
	for _, line := range after {
		if !slices.Contains(before, line) && !elsewhere(line) {
			t.Errorf("left behind or changed: %s", line)
		}
	}
	for _, line := range before {
		if !slices.Contains(after, line) && !elsewhere(line) {
			t.Errorf("gone or changed: %s", line)
		}
	}
	left, err := filepath.Glob(dir + "/*")
	if err != nil || len(left) > 1 || (len(left) == 1 && filepath.Base(left[0]) != "logs") {
		t.Errorf("left in the rig's directory: %q, %v", left, err)
	}
}

// otherRigs reports whether rigs are up; they keep the limits of inotify raised.
func otherRigs() bool {
	v1, _ := filepath.Glob("/sys/fs/cgroup/*/vk??????")
	v2, _ := filepath.Glob("/sys/fs/cgroup/vk??????")
	return len(v1)+len(v2) > 0
}

// buildAll makes a rig with two racks, two machines and a process.
func buildAll(t *testing.T, dir string) *Rig {
	t.Helper()
	r, err := Up(testContext(t, 3*time.Minute), Config{Dir: dir, Racks: []RackConfig{{}, {}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t, 10*time.Minute)
	if _, err := r.AddEndpoint(ctx, "service", "rack-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.StartProcess(ctx, ProcessSpec{Name: "sleeper", Endpoint: "service", Argv: []string{"sh", "-c", "setsid sleep 1000 & exec sleep 1000"}}); err != nil {
		t.Fatal(err)
	}
	ms := boot(t, r, MachineConfig{Name: "metal-0"}, MachineConfig{Name: "metal-1", Rack: "rack-1"})
	run(t, ms[0], "systemd-run -p MemoryMax=64M sleep 1000; unshare -n sleep 1000 >/dev/null 2>&1 & unshare -Umr true; mount -t tmpfs tmpfs /mnt")
	return r
}

// TestHostReboot brings a rig up again after all that was outside of its directory has gone.
func TestHostReboot(t *testing.T) {
	r := newRig(t, Config{})
	ctx := testContext(t, 5*time.Minute)
	before, err := r.AddEndpoint(ctx, "service", "")
	if err != nil {
		t.Fatal(err)
	}
	m := boot(t, r, MachineConfig{Name: "metal-0"})[0]
	run(t, m, "touch /var/kept; sync")
	if err := errors.Join(r.downProcesses(ctx, nil), r.downKernel(ctx, nil)); err != nil {
		t.Fatal(err)
	}
	// A reboot undoes settings, too.
	if err := r.update(func(s *state) error { s.BootID = "another"; return restoreSysctls(s.Sysctls) }); err != nil {
		t.Fatal(err)
	}
	again, err := Up(ctx, Config{Dir: r.Dir()})
	if err != nil {
		t.Fatal(err)
	}
	after, err := again.AddEndpoint(ctx, "service", "")
	if err != nil || after != before {
		t.Errorf("AddEndpoint() after the host's reboot: %+v, %v; want %+v", after, err, before)
	}
	if st, _, err := m.State(ctx); st != MachineOff || err != nil {
		t.Errorf("State() after the host's reboot: %s, %v", st, err)
	}
	m = boot(t, again, MachineConfig{Name: "metal-0"})[0]
	run(t, m, "test -e /var/kept")
	if err := dial(after, m.endpoint(), m.V4, patience); err != nil {
		t.Error(err)
	}
}

// buildAndDie lets another program build and kills that in the middle.
func buildAndDie(t *testing.T, dir string, delay time.Duration) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestDownLeavesNothing$")
	cmd.Env = append(os.Environ(), envDownBuild+"="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dead := make(chan error, 1)
	go func() { dead <- cmd.Wait() }()
	waitUntil(t, "the rig to be begun", func() bool {
		_, err := os.Stat(filepath.Join(dir, stateFile))
		return err == nil
	})
	// Not synchronization: the moment of death is what the case varies.
	select {
	case <-time.After(delay):
	case <-dead:
		return
	}
	_ = cmd.Process.Kill()
	<-dead
}

// runInOwnWorld runs this test in new namespaces under a shell that reaps orphans.
func runInOwnWorld(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := EnsureRoot(ctx, DefaultRoot(), testWriter{t}); err != nil { // with the host's network
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child",
		"sh", "-c", `"$0" "$@"; code=$?; exit $code`, exe, "-test.run=^TestDownLeavesNothing$", "-test.v")
	cmd.Env = append(os.Environ(), envDownWorld+"=1")
	out, err := cmd.CombinedOutput()
	t.Logf("in namespaces of its own:\n%s", out)
	if err != nil {
		t.Error(err)
	}
}

// tmpfs covers a directory of this mount namespace.
func tmpfs(t *testing.T, path string) {
	t.Helper()
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
}

// observeWorld lists processes, mounts, links, routes, namespaces, files of /run and /tmp, and
// kernel-wide settings, one per line.
func observeWorld(t *testing.T) []string {
	t.Helper()
	var world []string
	add := func(kind string, items ...string) {
		for _, i := range items {
			world = append(world, kind+" "+i)
		}
	}
	pids, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range pids {
		pid, _ := strconv.Atoi(filepath.Base(p))
		cmdline, err := os.ReadFile(p + "/cmdline")
		if err == nil && len(cmdline) > 0 && !isZombie(pid) { // without one it is at its end
			add("process", strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	ms, err := readMounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ms {
		add("mount", m.path+" "+m.fsType)
	}
	links, err := linkNames()
	if err != nil {
		t.Fatal(err)
	}
	add("link", links...)
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		add("route", r.String())
	}
	for _, pattern := range []string{"/run/*/*", "/run/*/*/*", "/tmp/*"} {
		names, _ := filepath.Glob(pattern)
		add("file", names...)
	}
	for key, v := range kernelSettings() {
		add("sysctl", key+"="+v)
	}
	sort.Strings(world)
	return world
}

// volatileSettings are values below /proc/sys that the kernel itself moves.
var volatileSettings = []string{
	"fs/dentry-state", "fs/inode-", "fs/file-nr", "fs/aio-nr", "fs/quota", "fs/epoll", "kernel/random/", "kernel/ns_last_pid", "kernel/pty/nr",
	"kernel/keys/", "kernel/sched_domain", "kernel/perf_", "net/netfilter/nf_conntrack_count", "net/ipv4/route/flush", "net/ipv6/route/flush",
}

// kernelSettings reads all sysctls that can be read and stay.
func kernelSettings() map[string]string {
	values := map[string]string{}
	_ = filepath.WalkDir("/proc/sys", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // what cannot be read is no setting
		}
		key := strings.TrimPrefix(path, "/proc/sys/")
		if slices.ContainsFunc(volatileSettings, func(v string) bool { return strings.HasPrefix(key, v) }) {
			return nil
		}
		if b, err := os.ReadFile(path); err == nil {
			values[key] = strings.TrimSpace(string(b))
		}
		return nil
	})
	return values
}

// assertNoCgroups checks that the rig has no group in any hierarchy.
func assertNoCgroups(t *testing.T, id string) {
	t.Helper()
	hs, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hs {
		if _, err := os.Stat(filepath.Join(h.mount, id)); err == nil {
			t.Errorf("left behind: cgroup %s in %s", id, h.mount)
		}
	}
}
