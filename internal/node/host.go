package node

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/vk-metal/vk-metal/internal/version"
)

// Host reads this server's figures from the kernel. Root is "/" but in tests.
type Host struct {
	Root string
	// Storage is a directory on the file system that holds pods' ephemeral storage, Images
	// one on that of the images.
	Storage, Images string
}

func (h Host) read(path string) string {
	data, err := os.ReadFile(filepath.Join(h.Root, path))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// CPUs is the number of CPUs that are online.
func (h Host) CPUs() int {
	if n, err := countList(h.read("/sys/devices/system/cpu/online")); err == nil && n > 0 {
		return n
	}
	return runtime.NumCPU()
}

// countList counts the members of a kernel list such as "0-3,8".
func countList(list string) (n int, err error) {
	for part := range strings.SplitSeq(list, ",") {
		low, high, isRange := strings.Cut(part, "-")
		first, err := strconv.Atoi(low)
		if err != nil {
			return 0, fmt.Errorf("parse list %q: %w", list, err)
		}
		last := first
		if isRange {
			if last, err = strconv.Atoi(high); err != nil {
				return 0, fmt.Errorf("parse list %q: %w", list, err)
			}
		}
		n += last - first + 1
	}
	return n, nil
}

// Meminfo returns /proc/meminfo in bytes.
func (h Host) Meminfo() map[string]int64 {
	info := map[string]int64{}
	lines := bufio.NewScanner(strings.NewReader(h.read("/proc/meminfo")))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		n, err := strconv.ParseInt(fields[1], 10, 64)
		if err == nil {
			info[strings.TrimSuffix(fields[0], ":")] = n << 10
		}
	}
	return info
}

// WorkingSet is the memory in use that cannot be had back at once, and all that there is, as
// cAdvisor counts for the server as a whole: all but free memory and inactive file pages.
func (h Host) WorkingSet() (used, total int64) {
	m := h.Meminfo()
	return max(m["MemTotal"]-m["MemFree"]-m["Inactive(file)"], 0), m["MemTotal"]
}

// HugePages returns the configured bytes by resource name (hugepages-2Mi).
func (h Host) HugePages() map[corev1.ResourceName]int64 {
	pages := map[corev1.ResourceName]int64{}
	dirs, _ := filepath.Glob(filepath.Join(h.Root, "/sys/kernel/mm/hugepages/hugepages-*kB"))
	for _, dir := range dirs {
		text := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(dir), "hugepages-"), "kB")
		kb, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, "nr_hugepages"))
		n, errN := strconv.ParseInt(string(bytes.TrimSpace(data)), 10, 64)
		if err != nil || errN != nil {
			continue
		}
		size := resource.NewQuantity(kb<<10, resource.BinarySI)
		pages[corev1.ResourceName(corev1.ResourceHugePagesPrefix+size.String())] = n * kb << 10
	}
	return pages
}

// Filesystem is a file system's size in bytes: Free counts what is kept for root,
// Available does not.
type Filesystem struct{ Size, Free, Available, Inodes, InodesFree int64 }

// Statfs reads the file system that holds dir.
func Statfs(dir string) (Filesystem, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return Filesystem{}, fmt.Errorf("read file system of %s: %w", dir, err)
	}
	block := s.Frsize
	return Filesystem{
		Size: int64(s.Blocks) * block, Free: int64(s.Bfree) * block, Available: int64(s.Bavail) * block,
		Inodes: int64(s.Files), InodesFree: int64(s.Ffree),
	}, nil
}

// userHZ is the unit of /proc/stat: 1/100 s on every architecture of ours (sysconf(_SC_CLK_TCK)).
const userHZ = 100

// CPUTime is what all CPUs have worked since the start: neither idle nor waiting for I/O,
// guests counted once.
func (h Host) CPUTime() (time.Duration, error) {
	first, _, _ := strings.Cut(h.read("/proc/stat"), "\n")
	fields := strings.Fields(first)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, errors.New("read CPU time: /proc/stat does not begin with it")
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7, 8} { // user nice system irq softirq steal
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / userHZ), nil
}

// BootTime is when the kernel started.
func (h Host) BootTime() time.Time {
	for line := range strings.SplitSeq(h.read("/proc/stat"), "\n") {
		if text, ok := strings.CutPrefix(line, "btime "); ok {
			seconds, _ := strconv.ParseInt(text, 10, 64)
			return time.Unix(seconds, 0)
		}
	}
	return time.Time{}
}

// Threads returns how many tasks exist and how many may.
func (h Host) Threads() (used, limit int64, ok bool) {
	fields := strings.Fields(h.read("/proc/loadavg"))
	if len(fields) < 4 {
		return 0, 0, false
	}
	_, all, _ := strings.Cut(fields[3], "/")
	used, err := strconv.ParseInt(all, 10, 64)
	pids, errPID := strconv.ParseInt(h.read("/proc/sys/kernel/pid_max"), 10, 64)
	threads, errThreads := strconv.ParseInt(h.read("/proc/sys/kernel/threads-max"), 10, 64)
	if err != nil || errPID != nil || errThreads != nil {
		return 0, 0, false
	}
	return used, min(pids, threads), true
}

// Info is the Node's nodeInfo. systemdVersion is the manager's Version property.
func (h Host) Info(systemdVersion string) corev1.NodeSystemInfo {
	info := corev1.NodeSystemInfo{
		MachineID:               h.read("/etc/machine-id"),
		SystemUUID:              h.read("/sys/class/dmi/id/product_uuid"),
		BootID:                  h.read("/proc/sys/kernel/random/boot_id"),
		KernelVersion:           h.read("/proc/sys/kernel/osrelease"),
		OSImage:                 h.osImage(),
		ContainerRuntimeVersion: "systemd://" + release(systemdVersion),
		KubeletVersion:          version.Kubelet(),
		OperatingSystem:         runtime.GOOS,
		Architecture:            runtime.GOARCH,
	}
	if info.SystemUUID == "" {
		info.SystemUUID = info.MachineID
	}
	if swap := h.Meminfo()["SwapTotal"]; swap > 0 {
		info.Swap = &corev1.NodeSwapStatus{Capacity: &swap}
	}
	return info
}

// release is the leading number of a version: "252" of "252.39-1~deb12u1", "257~rc1" → "257".
func release(version string) string {
	end := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		return version
	}
	return version[:end]
}

func (h Host) osImage() string {
	text := h.read("/etc/os-release")
	if text == "" {
		text = h.read("/usr/lib/os-release")
	}
	for line := range strings.SplitSeq(text, "\n") {
		if value, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			return strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	return "Linux"
}
