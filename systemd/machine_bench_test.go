package systemd

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// TestMachineLatency prints what docs/decisions/0001 rests on: start latencies, one after
// the other, as ratios to a bare transient unit's in the same run. VK_METAL_BENCH=1 runs it.
func TestMachineLatency(t *testing.T) {
	if os.Getenv("VK_METAL_BENCH") == "" {
		t.Skip("VK_METAL_BENCH is not set")
	}
	m := newMachine(t)
	const rounds = 100
	ways := []struct {
		name string
		run  func(i int) (unit string)
	}{
		{"bare transient unit", m.startBare},
		{"bare unit file", m.startFile},
		{"container, transient unit", m.startContainer},
		{"container, unit file", m.startContainerFile},
	}
	m.must(m.manager.EnsureSlice(m.ctx, Slice{Name: benchSlice, Description: "bench"}))
	times := make([][]time.Duration, len(ways))
	for i := range rounds {
		for w, way := range ways { // interleaved: the machine's load is everybody's
			begin := time.Now()
			unit := way.run(i)
			times[w] = append(times[w], time.Since(begin))
			m.must(m.manager.Remove(m.ctx, unit))
		}
	}
	for _, list := range times {
		slices.Sort(list)
	}
	at := func(w int, q float64) time.Duration { return times[w][int(q*float64(rounds-1))] }
	for w, way := range ways {
		fmt.Printf("%-28s p50 %8v (%.2f)  p99 %8v (%.2f)\n", way.name,
			at(w, 0.5).Round(10*time.Microsecond), float64(at(w, 0.5))/float64(at(0, 0.5)),
			at(w, 0.99).Round(10*time.Microsecond), float64(at(w, 0.99))/float64(at(0, 0.99)))
	}
	a := m.sleeper(nil)
	var execs []time.Duration
	for range rounds {
		begin := time.Now()
		a.mustExec("true")
		execs = append(execs, time.Since(begin))
	}
	slices.Sort(execs)
	fmt.Printf("exec of true: min %v p50 %v p99 %v\n", execs[0], execs[rounds/2], execs[rounds*99/100])
}

func (m *machine) startBare(i int) string {
	m.t.Helper()
	unit := fmt.Sprintf("vkm-bare-%d.service", i)
	fields, err := identityFields(Identity{PodUID: "bare"})
	m.must(err)
	result, err := m.manager.startTransient(m.ctx, unit, []property{
		prop("Type", "exec"), prop("LogExtraFields", fields), prop("CollectMode", "inactive-or-failed"),
		prop("ExecStart", []execCommand{{Path: "/bin/sleep", Argv: []string{"sleep", "1000"}}}),
	})
	m.must(err)
	if result != "done" {
		m.t.Fatal(result)
	}
	return unit
}

// startUnit starts a unit that has a file.
func (m *machine) startUnit(unit string) {
	m.t.Helper()
	result, err := m.manager.jobs.run(m.ctx, func() (job dbus.ObjectPath, err error) {
		call, err := m.manager.call(m.ctx, "StartUnit", unit, "fail")
		if err != nil {
			return "", err
		}
		return job, call.Store(&job)
	})
	m.must(err)
	if result != "done" {
		m.t.Fatal(result)
	}
}

func (m *machine) unitFile(unit, text string) {
	m.t.Helper()
	file := filepath.Join("/run/systemd/system", unit)
	m.must(os.WriteFile(file, []byte(text), 0o644))
	m.t.Cleanup(func() { os.Remove(file) })
}

func (m *machine) startFile(i int) string {
	m.t.Helper()
	unit := fmt.Sprintf("vkm-file-%d.service", i)
	m.unitFile(unit, "[Unit]\nCollectMode=inactive-or-failed\n[Service]\nType=exec\nLogExtraFields=VK_METAL_POD_UID=bare\nExecStart=/bin/sleep 1000\n")
	m.startUnit(unit)
	return unit
}

func (m *machine) startContainer(int) string {
	m.t.Helper()
	a := m.benchAttempt()
	a.mustStart()
	return a.unit.Name
}

// benchAttempt is a container as the second of a pod: slice and namespaces are there.
func (m *machine) benchAttempt() *attempt {
	m.t.Helper()
	a := m.attempt("sleep", "1000")
	a.unit.Slice = benchSlice
	a.spec.Namespaces.HostNet, a.spec.Namespaces.HostIPC = true, true
	return a
}

const benchSlice = "kubepods-besteffort-podbench.slice"

func (m *machine) startContainerFile(int) string {
	m.t.Helper()
	a := m.benchAttempt()
	a.write()
	launcher := m.manager.opts.Launcher
	spec := filepath.Join(m.layout.Lib, filepath.Base(filepath.Dir(filepath.Dir(filepath.Dir(filepath.Dir(a.unit.LaunchSpec))))))
	m.must(os.Symlink(filepath.Dir(a.unit.LaunchSpec), spec)) // the test's directory has % and $ in its name
	m.unitFile(a.unit.Name, fmt.Sprintf(`[Unit]
Description=%s
CollectMode=inactive-or-failed
[Service]
Type=notify
NotifyAccess=main
Slice=%s
ExecStart=%s run %s/launch.json
ExecStopPost=%[3]s record %[4]s/launch.json
Restart=no
KillMode=mixed
TimeoutStartSec=2min
TimeoutStopSec=30s
StandardInput=null
StandardOutput=null
StandardError=journal
SyslogIdentifier=vk-metal-launch
LogExtraFields=VK_METAL_POD_UID=%s
IgnoreSIGPIPE=no
UMask=0022
OOMPolicy=kill
Delegate=yes
CPUAccounting=yes
MemoryAccounting=yes
TasksAccounting=yes
DevicePolicy=strict
DeviceAllow=/dev/null rwm
DeviceAllow=/dev/zero rwm
DeviceAllow=/dev/full rwm
DeviceAllow=/dev/random rwm
DeviceAllow=/dev/urandom rwm
DeviceAllow=/dev/tty rwm
DeviceAllow=char-ptmx rwm
DeviceAllow=char-pts rwm
DeviceAllow=char-* m
DeviceAllow=block-* m
`, a.unit.Description, a.unit.Slice, launcher, spec, a.spec.PodUID))
	m.startUnit(a.unit.Name)
	return a.unit.Name
}
