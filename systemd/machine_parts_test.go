package systemd

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// TestMachineParts prints what the parts of a pod add to the start of a container that
// TestMachineLatency measures, each with all before it, and what a pause before a start
// costs. VK_METAL_BENCH=1 runs it.
func TestMachineParts(t *testing.T) {
	if os.Getenv("VK_METAL_BENCH") == "" {
		t.Skip("VK_METAL_BENCH is not set")
	}
	m := newMachine(t)
	const rounds = 40
	m.must(m.manager.EnsureSlice(m.ctx, Slice{Name: benchSlice, Description: "bench"}))
	p := m.benchParts()
	ways := []struct {
		name  string
		parts int
		pause time.Duration
	}{
		{"container", 0, 0},
		{"+ its pod's namespaces", 1, 0},
		{"+ its volumes", 2, 0},
		{"+ its log, what is masked", 3, 0},
		{"+ its pod's mounts, just made", 4, 0},
		{"container, after a pause", 0, 300 * time.Millisecond},
		{"all of it, after a pause", 4, 300 * time.Millisecond},
	}
	times := make([][]time.Duration, len(ways))
	for i := range rounds {
		for w, way := range ways {
			a := m.benchAttempt()
			p.add(a, way.parts)
			a.write()
			time.Sleep(way.pause)
			begin := time.Now()
			if way.parts > 3 {
				p.mount(i)
			}
			_, err := m.manager.Start(m.ctx, a.unit)
			times[w] = append(times[w], time.Since(begin))
			m.must(err)
			m.must(m.manager.Remove(m.ctx, a.unit.Name))
			p.unmount()
		}
	}
	for w, way := range ways {
		list := times[w]
		slices.Sort(list)
		fmt.Printf("%-32s p10 %8v p50 %8v p90 %8v\n", way.name, list[rounds/10].Round(10*time.Microsecond),
			list[rounds/2].Round(10*time.Microsecond), list[rounds*9/10].Round(10*time.Microsecond))
	}
}

// benchParts are a pod's, made once: its namespaces, files and log.
type benchParts struct {
	m       *machine
	net     string
	ipc     string
	volumes []launchspec.Mount
	log     string
	mounted []string
}

func (m *machine) benchParts() *benchParts {
	m.t.Helper()
	dir := filepath.Join(m.layout.Run, "bench")
	m.must(os.MkdirAll(filepath.Join(dir, "token"), 0o755))
	p := &benchParts{m: m, net: filepath.Join(dir, "net"), ipc: filepath.Join(dir, "ipc"), log: filepath.Join(dir, "log")}
	m.bindNamespace(p.net, "net", unix.CLONE_NEWNET)
	m.bindNamespace(p.ipc, "ipc", unix.CLONE_NEWIPC)
	for _, name := range []string{"hosts", "resolv.conf", "hostname", "termination-log"} {
		m.must(os.WriteFile(filepath.Join(dir, name), nil, 0o644))
		p.volumes = append(p.volumes, launchspec.Mount{Kind: launchspec.MountBind, Source: filepath.Join(dir, name), Target: "/etc/" + name, File: true})
	}
	p.volumes = append(p.volumes,
		launchspec.Mount{Kind: launchspec.MountBind, Source: filepath.Join(dir, "token"), Target: "/run/secrets", Readonly: true, Recursive: true})
	m.must(unix.Mkfifo(p.log, 0o600))
	fd, err := os.OpenFile(p.log, os.O_RDWR, 0)
	m.must(err)
	m.t.Cleanup(func() { fd.Close() })
	return p
}

func (m *machine) bindNamespace(path, kind string, flag int) {
	m.t.Helper()
	m.must(os.WriteFile(path, nil, 0o600))
	m.t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	result := make(chan error, 1)
	go func() { // the thread ends with its namespace
		runtime.LockOSThread()
		if err := unix.Unshare(flag); err != nil {
			result <- err
			return
		}
		result <- unix.Mount("/proc/self/task/"+strconv.Itoa(unix.Gettid())+"/ns/"+kind, path, "", unix.MS_BIND, "")
	}()
	m.must(<-result)
}

func (p *benchParts) add(a *attempt, parts int) {
	if parts > 0 {
		a.spec.Namespaces = launchspec.Namespaces{Net: p.net, IPC: p.ipc}
	}
	if parts > 1 {
		a.spec.Mounts = p.volumes
	}
	if parts > 2 {
		a.spec.Stdout, a.spec.Stderr = p.log, p.log
		a.spec.MaskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"}
		a.spec.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	}
}

// mount makes three mounts, as many as a pod has on the host.
func (p *benchParts) mount(round int) {
	p.m.t.Helper()
	for i := range 3 {
		dir := filepath.Join(p.m.layout.Run, fmt.Sprintf("bench-%d-%d", round, i))
		p.m.must(os.MkdirAll(dir, 0o700))
		p.m.must(unix.Mount("shm", dir, "tmpfs", 0, "size=64k"))
		p.mounted = append(p.mounted, dir)
	}
}

func (p *benchParts) unmount() {
	p.m.t.Helper()
	for _, dir := range p.mounted {
		p.m.must(unix.Unmount(dir, unix.MNT_DETACH))
	}
	p.mounted = nil
}
