package systemd

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3/cgroup1"
	v1stats "github.com/containerd/cgroups/v3/cgroup1/stats"
	"github.com/containerd/cgroups/v3/cgroup2"
)

// Disk is what a cgroup has read from and written to one block device.
type Disk struct {
	Major, Minor uint64
	// Reads and Writes are operations, the others bytes.
	Reads, Writes, ReadBytes, WriteBytes uint64
}

// CPULimits is how a cgroup shares the CPUs.
type CPULimits struct {
	// Shares is the weight on cgroup v1's scale (1024 for one CPU).
	Shares uint64
	// Quota in each Period, both in microseconds; Quota is 0 for none.
	Quota, Period uint64
}

// Cgroup is what Stats leaves out: who is there, what was read and written, and the limits.
type Cgroup struct {
	// Path is the cgroup's, from the root of the hierarchy.
	Path string
	// PIDs are the processes in it (not in those below), Disks the devices that it has used.
	PIDs  []int
	Disks []Disk
	CPU   CPULimits
}

// Cgroup reads what Stats leaves out of a unit's or slice's cgroup. What the kernel does not
// tell (a controller that is not there) is empty.
func (m *Manager) Cgroup(ctx context.Context, name string) (Cgroup, error) {
	path, err := m.controlGroup(ctx, name)
	if err != nil {
		return Cgroup{}, err
	}
	c := Cgroup{Path: path}
	if m.cgroup == cgroupV2 {
		dir := filepath.Join(cgroupMount, path)
		c.PIDs, c.CPU, c.Disks = pids(dir), cpuLimitsV2(dir), disksV2(path)
	} else {
		c.PIDs, c.CPU, c.Disks = pids(filepath.Join(cgroupMount, "systemd", path)), cpuLimitsV1(filepath.Join(cgroupMount, "cpu", path)), disksV1(path)
	}
	return c, nil
}

// numbers reads a file of the kernel's that is one line; "max" is 0.
func numbers(path string) []uint64 {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var list []uint64
	for _, field := range strings.Fields(string(data)) {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			n = 0 // max, or -1 of cgroup v1
		}
		list = append(list, n)
	}
	return list
}

// swapV1 is what cgroup v1 tells of swapped memory, in bytes; containerd's package leaves it out.
func swapV1(group string) uint64 {
	data, err := os.ReadFile(filepath.Join(cgroupMount, "memory", group, "memory.stat"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "total_swap "); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			return n
		}
	}
	return 0
}

func pids(dir string) []int {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil
	}
	var list []int
	for line := range bytes.Lines(data) {
		if pid, err := strconv.Atoi(string(bytes.TrimSpace(line))); err == nil {
			list = append(list, pid)
		}
	}
	return list
}

func cpuLimitsV1(dir string) CPULimits {
	return CPULimits{
		Shares: first(numbers(filepath.Join(dir, "cpu.shares"))),
		Quota:  first(numbers(filepath.Join(dir, "cpu.cfs_quota_us"))), Period: first(numbers(filepath.Join(dir, "cpu.cfs_period_us"))),
	}
}

func cpuLimitsV2(dir string) CPULimits {
	limits := CPULimits{Shares: sharesOf(first(numbers(filepath.Join(dir, "cpu.weight"))))}
	if quota := numbers(filepath.Join(dir, "cpu.max")); len(quota) == 2 {
		limits.Quota, limits.Period = quota[0], quota[1]
	}
	return limits
}

// sharesOf is about what a kubelet or we have made a weight of: the inverse of the formula that
// cpuWeight computes; 0 for no weight.
func sharesOf(weight uint64) uint64 {
	if weight == 0 {
		return 0
	}
	log := (-125 + math.Sqrt(125*125+4*612*(math.Log10(float64(weight))+7.0/34))) / 2
	return uint64(math.Round(math.Exp2(log)))
}

func first(list []uint64) uint64 {
	if len(list) == 0 {
		return 0
	}
	return list[0]
}

func disksV2(group string) []Disk {
	cgroup, err := cgroup2.Load(group)
	if err != nil {
		return nil
	}
	metrics, err := cgroup.StatFiltered(cgroup2.StatIO)
	if err != nil {
		return nil
	}
	var disks []Disk
	for _, e := range metrics.GetIo().GetUsage() {
		disks = append(disks, Disk{Major: e.Major, Minor: e.Minor, Reads: e.Rios, Writes: e.Wios, ReadBytes: e.Rbytes, WriteBytes: e.Wbytes})
	}
	return disks
}

func disksV1(group string) []Disk {
	blkio := cgroup1.NewBlkio(cgroupMount)
	var metrics v1stats.Metrics
	if err := blkio.Stat(group, &metrics); err != nil {
		return nil
	}
	var disks []Disk
	at := func(e *v1stats.BlkIOEntry) *Disk {
		i := slices.IndexFunc(disks, func(d Disk) bool { return d.Major == e.Major && d.Minor == e.Minor })
		if i < 0 {
			disks = append(disks, Disk{Major: e.Major, Minor: e.Minor})
			i = len(disks) - 1
		}
		return &disks[i]
	}
	for _, e := range metrics.GetBlkio().GetIoServiceBytesRecursive() {
		switch e.Op {
		case "Read":
			at(e).ReadBytes = e.Value
		case "Write":
			at(e).WriteBytes = e.Value
		}
	}
	for _, e := range metrics.GetBlkio().GetIoServicedRecursive() {
		switch e.Op {
		case "Read":
			at(e).Reads = e.Value
		case "Write":
			at(e).Writes = e.Value
		}
	}
	return disks
}

// DeviceName is a block device's path in /dev, or major:minor where the kernel names none.
func (d Disk) DeviceName() string {
	link, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", d.Major, d.Minor))
	if err != nil {
		return fmt.Sprintf("%d:%d", d.Major, d.Minor)
	}
	return "/dev/" + filepath.Base(link)
}
