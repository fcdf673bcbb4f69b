package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	v2stats "github.com/containerd/cgroups/v3/cgroup2/stats"
	"golang.org/x/sys/unix"
)

// Stats are the figures of a unit's or slice's cgroup. What the kernel does not count
// (a controller that is not there) is 0.
type Stats struct {
	Time time.Time
	// CPUUsage is CPU time used since the cgroup was made; CPUUser and CPUSystem are its parts.
	CPUUsage, CPUUser, CPUSystem time.Duration
	// CPUPeriods are those of the CPU quota that have begun; in CPUThrottledPeriods of them
	// the cgroup had used its share up, and waited for CPUThrottled in all.
	CPUPeriods, CPUThrottledPeriods uint64
	CPUThrottled                    time.Duration
	// MemoryUsage, MemoryWorkingSet (usage less inactive file pages, as cAdvisor counts) and
	// MemoryRSS (anonymous memory) are in bytes; MemoryLimit is 0 for none.
	MemoryUsage, MemoryWorkingSet, MemoryRSS, MemoryLimit uint64
	// MemoryCache (pages of files), MemoryMapped (those that are mapped), MemorySwap and
	// MemoryPeak (the most that MemoryUsage has been) are in bytes.
	MemoryCache, MemoryMapped, MemorySwap, MemoryPeak uint64
	// MemoryFailures counts how often the limit was reached.
	MemoryFailures              uint64
	PageFaults, MajorPageFaults uint64
	// Processes counts tasks; OOMKills the processes killed for want of memory.
	Processes, OOMKills uint64
	// CPUPressure, MemoryPressure and IOPressure are nil without cgroup v2 or PSI.
	CPUPressure, MemoryPressure, IOPressure *Pressure
}

// Pressure is how much of the time tasks waited for a resource (PSI): some of them, or all
// at once.
type Pressure struct{ Some, Full PressureLine }

// PressureLine is one line of a pressure file: the total in microseconds, and percentages
// over the last 10, 60 and 300 seconds.
type PressureLine struct {
	Total                uint64
	Avg10, Avg60, Avg300 float64
}

// ErrNoCgroup says that a unit or slice has no cgroup (any more).
var ErrNoCgroup = errors.New("no cgroup")

// RootSlice is the slice of everything: of its figures the kernel has CPU time and pressure.
const RootSlice = "-.slice"

// Stats reads the figures of a unit or slice of any name.
func (m *Manager) Stats(ctx context.Context, name string) (Stats, error) {
	group, err := m.controlGroup(ctx, name)
	if err != nil {
		return Stats{}, err
	}
	read := statsV1
	if m.cgroup == cgroupV2 {
		read = statsV2
	}
	stats, err := read(group)
	if err != nil {
		return Stats{}, fmt.Errorf("read cgroup figures of %s: %w", name, err)
	}
	stats.Time = time.Now()
	return stats, nil
}

func (m *Manager) controlGroup(ctx context.Context, name string) (string, error) {
	if group, ok := sliceGroup(name); ok {
		return group, nil
	}
	if known, ok := m.known(name); ok && known.group != "" {
		return known.group, nil
	}
	values, err := m.properties(ctx, name, [2]string{serviceIface, "ControlGroup"})
	if gone(err) {
		return "", fmt.Errorf("unit %s: %w", name, ErrNoCgroup)
	}
	if err != nil {
		return "", err
	}
	group, _ := values[0].Value().(string)
	if group == "" {
		return "", fmt.Errorf("unit %s: %w", name, ErrNoCgroup)
	}
	m.rememberGroup(name, group)
	return group, nil
}

// sliceGroup is the cgroup of a slice: a-b.slice lies in a.slice.
func sliceGroup(name string) (string, bool) {
	stem, ok := strings.CutSuffix(name, ".slice")
	if !ok {
		return "", false
	}
	if stem == "-" || stem == "" {
		return "/", true
	}
	var group strings.Builder
	for i := range len(stem) {
		if stem[i] == '-' {
			group.WriteString("/" + stem[:i] + ".slice")
		}
	}
	return group.String() + "/" + name, true
}

// v1Subsystems are the controllers whose figures we read.
func v1Subsystems() ([]cgroup1.Subsystem, error) {
	return []cgroup1.Subsystem{
		cgroup1.NewMemory(cgroupMount, cgroup1.IgnoreModules("memsw", "kmem", "kmem.tcp")),
		cgroup1.NewCpu(cgroupMount),
		cgroup1.NewCpuacct(cgroupMount),
		cgroup1.NewPids(cgroupMount),
	}, nil
}

func statsV1(group string) (Stats, error) {
	cgroup, err := cgroup1.Load(cgroup1.StaticPath(group), cgroup1.WithHierarchy(v1Subsystems))
	if errors.Is(err, cgroup1.ErrCgroupDeleted) {
		return Stats{}, ErrNoCgroup
	}
	if err != nil {
		return Stats{}, err
	}
	metrics, err := cgroup.Stat(cgroup1.IgnoreNotExist)
	if err != nil {
		return Stats{}, err
	}
	var s Stats
	usage, throttling := metrics.GetCPU().GetUsage(), metrics.GetCPU().GetThrottling()
	s.CPUUsage, s.CPUUser, s.CPUSystem = time.Duration(usage.GetTotal()), time.Duration(usage.GetUser()), time.Duration(usage.GetKernel())
	s.CPUPeriods, s.CPUThrottledPeriods = throttling.GetPeriods(), throttling.GetThrottledPeriods()
	s.CPUThrottled = time.Duration(throttling.GetThrottledTime())
	if s.CPUUsage == 0 {
		s.hybridCPU(group)
	}
	if memory := metrics.GetMemory(); memory != nil {
		s.MemoryUsage = memory.GetUsage().GetUsage()
		s.MemoryLimit = limit(memory.GetUsage().GetLimit())
		s.MemoryWorkingSet = less(s.MemoryUsage, memory.TotalInactiveFile)
		s.MemoryRSS = memory.TotalRSS
		s.MemoryCache, s.MemoryMapped, s.MemorySwap = memory.TotalCache, memory.TotalMappedFile, swapV1(group)
		s.MemoryPeak, s.MemoryFailures = memory.GetUsage().GetMax(), memory.GetUsage().GetFailcnt()
		s.PageFaults, s.MajorPageFaults = memory.TotalPgFault, memory.TotalPgMajFault
	}
	s.Processes = metrics.GetPids().GetCurrent()
	s.OOMKills = metrics.GetMemoryOomControl().GetOomKill()
	return s, nil
}

// hybridCPU reads CPU time from the v2 hierarchy, which has it without any controller.
// systemd makes no cpuacct groups on a host that mounts cpu and cpuacct apart.
func (s *Stats) hybridCPU(group string) {
	cgroup, err := cgroup2.Load(group, cgroup2.WithMountpoint(filepath.Join(cgroupMount, "unified")))
	if err != nil {
		return
	}
	metrics, err := cgroup.StatFiltered(cgroup2.StatCPU)
	if err != nil {
		return
	}
	s.takeCPU(metrics.GetCPU())
}

// takeCPU takes the times of cgroup v2, and what it tells of the quota where it has one.
func (s *Stats) takeCPU(cpu *v2stats.CPUStat) {
	s.CPUUsage, s.CPUUser, s.CPUSystem = micros(cpu.GetUsageUsec()), micros(cpu.GetUserUsec()), micros(cpu.GetSystemUsec())
	if cpu.GetNrPeriods() > 0 {
		s.CPUPeriods, s.CPUThrottledPeriods, s.CPUThrottled = cpu.GetNrPeriods(), cpu.GetNrThrottled(), micros(cpu.GetThrottledUsec())
	}
}

func micros(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }

func statsV2(group string) (Stats, error) {
	if _, err := os.Stat(filepath.Join(cgroupMount, group)); errors.Is(err, os.ErrNotExist) {
		return Stats{}, ErrNoCgroup
	}
	cgroup, err := cgroup2.Load(group)
	if err != nil {
		return Stats{}, err
	}
	metrics, err := cgroup.StatFiltered(cgroup2.StatPids | cgroup2.StatCPU | cgroup2.StatMemory | cgroup2.StatMemoryEvents | cgroup2.StatIO)
	if errors.Is(err, unix.ENODEV) { // it has gone while it was read
		return Stats{}, ErrNoCgroup
	}
	if err != nil {
		return Stats{}, err
	}
	s := Stats{
		Processes: metrics.GetPids().GetCurrent(),
		OOMKills:  metrics.GetMemoryEvents().GetOomKill(),

		CPUPressure: pressure(metrics.GetCPU().GetPSI()), MemoryPressure: pressure(metrics.GetMemory().GetPSI()),
		IOPressure: pressure(metrics.GetIo().GetPSI()),
	}
	s.takeCPU(metrics.GetCPU())
	if memory := metrics.GetMemory(); memory != nil {
		s.MemoryUsage, s.MemoryLimit = memory.Usage, limit(memory.UsageLimit)
		s.MemoryWorkingSet = less(memory.Usage, memory.InactiveFile)
		s.MemoryRSS = memory.Anon
		s.MemoryCache, s.MemoryMapped, s.MemorySwap, s.MemoryPeak = memory.File, memory.FileMapped, memory.SwapUsage, memory.MaxUsage
		s.MemoryFailures = metrics.GetMemoryEvents().GetMax()
		s.PageFaults, s.MajorPageFaults = memory.Pgfault, memory.Pgmajfault
	}
	return s, nil
}

func pressure(psi *v2stats.PSIStats) *Pressure {
	if psi.GetSome() == nil {
		return nil
	}
	return &Pressure{Some: pressureLine(psi.GetSome()), Full: pressureLine(psi.GetFull())}
}

func pressureLine(psi *v2stats.PSIData) PressureLine {
	return PressureLine{Avg10: psi.GetAvg10(), Avg60: psi.GetAvg60(), Avg300: psi.GetAvg300(), Total: psi.GetTotal()}
}

// limit turns the kernel's ways to say "none" (v1: the largest page-aligned number) into 0.
func limit(n uint64) uint64 {
	if n >= 1<<62 {
		return 0
	}
	return n
}

func less(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}
