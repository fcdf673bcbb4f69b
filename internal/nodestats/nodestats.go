// Package nodestats makes the kubelet's statistics summary of this server's and the pods'
// figures. It reads through what it is given and keeps only the last CPU readings, for
// rates; it must not know systemd or HTTP.
package nodestats

import (
	"context"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// Reading is what a cgroup, or the whole server, has used.
type Reading struct {
	Time time.Time
	// CPU time since the beginning.
	CPU time.Duration
	// Memory, WorkingSet, RSS and Limit are bytes; Limit 0 is none.
	Memory, WorkingSet, RSS, Limit uint64
	PageFaults, MajorPageFaults    uint64
	// Swap is bytes that are swapped out, SwapLimit those that may be, 0 for none.
	Swap, SwapLimit uint64
	// Processes counts tasks; ProcessLimit is how many there may be, of the server only.
	Processes, ProcessLimit uint64
	// Links are the server's network.
	Links *statsv1alpha1.NetworkStats
	// CPUPressure, MemoryPressure and IOPressure are nil where the kernel does not tell.
	CPUPressure, MemoryPressure, IOPressure *statsv1alpha1.PSIStats
}

// Disk is what files take of the node's disk.
type Disk struct {
	Time          time.Time
	Bytes, Inodes uint64
}

// Container is one running container.
type Container struct {
	Name      string
	StartedAt time.Time
	Reading   Reading
	// Rootfs is the writable layer, Logs are the logs; nil where they are not known.
	Rootfs, Logs *Disk
}

// Pod is one pod that has a cgroup.
type Pod struct {
	Namespace, Name, UID string
	StartedAt            time.Time
	Reading              Reading
	Containers           []Container
	Network              *statsv1alpha1.NetworkStats
	Volumes              []statsv1alpha1.VolumeStats
	// Ephemeral is all that the pod takes of the node's disk; nil where it is not known.
	Ephemeral *Disk
}

// Source has the present figures.
type Source interface {
	// Node reads the whole server.
	Node(ctx context.Context) (Reading, error)
	// Pods reads all pods; one that ended meanwhile is left out. Networks, and what they take of disks, are
	// read on demand only.
	Pods(ctx context.Context, whole bool) ([]Pod, error)
	// NodeFS and ImageFS read the file systems of pods and images.
	NodeFS() (statsv1alpha1.FsStats, error)
	ImageFS() (statsv1alpha1.FsStats, error)
}

// Summarizer makes summaries. It is safe for concurrent use.
type Summarizer struct {
	source   Source
	nodeName string
	boot     time.Time

	mu    sync.Mutex
	rates map[string]rate
}

// rate is the CPU use between the last two readings of a name.
type rate struct {
	last  Reading
	nanos *uint64 // nanocores; nil after a single reading
	seen  time.Time
}

// New makes a Summarizer; boot is when the server started.
func New(nodeName string, boot time.Time, source Source) *Summarizer {
	return &Summarizer{source: source, nodeName: nodeName, boot: boot, rates: map[string]rate{}}
}

// rateWindow is the shortest time over which a rate is taken, and forgetAfter when a
// reading is too old to compare with.
const (
	rateWindow  = 5 * time.Second
	forgetAfter = 5 * time.Minute
)

// Summary reads everything now. With onlyCPUAndMemory file systems and volumes are left out.
func (s *Summarizer) Summary(ctx context.Context, onlyCPUAndMemory bool) (*statsv1alpha1.Summary, error) {
	node, err := s.source.Node(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the node's figures: %w", err)
	}
	pods, err := s.source.Pods(ctx, !onlyCPUAndMemory)
	if err != nil {
		return nil, fmt.Errorf("read the pods' figures: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	summary := &statsv1alpha1.Summary{Node: statsv1alpha1.NodeStats{
		NodeName: s.nodeName, StartTime: metav1.NewTime(s.boot), CPU: s.cpu("node", node), Memory: memory(node), IO: diskIO(node),
		Swap: swap(node), Network: node.Links, Rlimit: taskLimit(node),
	}}
	if !onlyCPUAndMemory {
		s.filesystems(&summary.Node)
	}
	for i := range pods {
		summary.Pods = append(summary.Pods, s.pod(&pods[i], summary.Node.Fs))
	}
	s.forget(time.Now())
	return summary, nil
}

// pod has its files on fs.
func (s *Summarizer) pod(pod *Pod, fs *statsv1alpha1.FsStats) statsv1alpha1.PodStats {
	stats := statsv1alpha1.PodStats{
		PodRef:       statsv1alpha1.PodReference{Name: pod.Name, Namespace: pod.Namespace, UID: pod.UID},
		StartTime:    metav1.NewTime(pod.StartedAt),
		CPU:          s.cpu(pod.UID, pod.Reading),
		Memory:       memory(pod.Reading),
		IO:           diskIO(pod.Reading),
		ProcessStats: &statsv1alpha1.ProcessStats{ProcessCount: &pod.Reading.Processes},
		Containers:   []statsv1alpha1.ContainerStats{},
		VolumeStats:  pod.Volumes,
		Swap:         swap(pod.Reading),
		Network:      pod.Network,

		EphemeralStorage: used(pod.Ephemeral, fs),
	}
	for _, c := range pod.Containers {
		// The start distinguishes attempts: their CPU clocks start anew.
		key := fmt.Sprintf("%s/%s/%d", pod.UID, c.Name, c.StartedAt.UnixNano())
		stats.Containers = append(stats.Containers, statsv1alpha1.ContainerStats{
			Name: c.Name, StartTime: metav1.NewTime(c.StartedAt), CPU: s.cpu(key, c.Reading), Memory: memory(c.Reading),
			IO: diskIO(c.Reading), Rootfs: used(c.Rootfs, fs), Logs: used(c.Logs, fs), Swap: swap(c.Reading),
		})
	}
	return stats
}

// used tells what files take of the file system that they are on.
func used(disk *Disk, fs *statsv1alpha1.FsStats) *statsv1alpha1.FsStats {
	if disk == nil {
		return nil
	}
	stats := &statsv1alpha1.FsStats{Time: metav1.NewTime(disk.Time), UsedBytes: &disk.Bytes, InodesUsed: &disk.Inodes}
	if fs != nil {
		stats.AvailableBytes, stats.CapacityBytes, stats.InodesFree, stats.Inodes = fs.AvailableBytes, fs.CapacityBytes, fs.InodesFree, fs.Inodes
	}
	return stats
}

// cpu takes the rate since the last reading that is old enough.
func (s *Summarizer) cpu(key string, now Reading) *statsv1alpha1.CPUStats {
	r, known := s.rates[key]
	switch {
	case !known || now.CPU < r.last.CPU:
		r = rate{last: now}
	case now.Time.Sub(r.last.Time) >= rateWindow:
		used := float64(now.CPU-r.last.CPU) / now.Time.Sub(r.last.Time).Seconds()
		nanos := uint64(used)
		r = rate{last: now, nanos: &nanos}
	}
	r.seen = now.Time
	s.rates[key] = r
	total := uint64(now.CPU)
	return &statsv1alpha1.CPUStats{Time: metav1.NewTime(now.Time), UsageCoreNanoSeconds: &total, UsageNanoCores: r.nanos, PSI: now.CPUPressure}
}

func (s *Summarizer) forget(now time.Time) {
	for key, r := range s.rates {
		if now.Sub(r.seen) > forgetAfter {
			delete(s.rates, key)
		}
	}
}

func (s *Summarizer) filesystems(node *statsv1alpha1.NodeStats) {
	if fs, err := s.source.NodeFS(); err == nil {
		node.Fs = &fs
	}
	if fs, err := s.source.ImageFS(); err == nil {
		node.Runtime = &statsv1alpha1.RuntimeStats{ImageFs: &fs, ContainerFs: &fs}
	}
}

func memory(r Reading) *statsv1alpha1.MemoryStats {
	stats := &statsv1alpha1.MemoryStats{
		Time: metav1.NewTime(r.Time), UsageBytes: &r.Memory, WorkingSetBytes: &r.WorkingSet, RSSBytes: &r.RSS,
		PageFaults: &r.PageFaults, MajorPageFaults: &r.MajorPageFaults, PSI: r.MemoryPressure,
	}
	if r.Limit > 0 {
		available := r.Limit - min(r.Limit, r.WorkingSet)
		stats.AvailableBytes = &available
	}
	return stats
}

// diskIO is left out without figures.
func diskIO(r Reading) *statsv1alpha1.IOStats {
	if r.IOPressure == nil {
		return nil
	}
	return &statsv1alpha1.IOStats{Time: metav1.NewTime(r.Time), PSI: r.IOPressure}
}

// swap tells what is free only of the server: cgroups have no swap limit of ours.
func swap(r Reading) *statsv1alpha1.SwapStats {
	stats := &statsv1alpha1.SwapStats{Time: metav1.NewTime(r.Time), SwapUsageBytes: &r.Swap}
	if r.SwapLimit > 0 {
		available := r.SwapLimit - min(r.SwapLimit, r.Swap)
		stats.SwapAvailableBytes = &available
	}
	return stats
}

func taskLimit(r Reading) *statsv1alpha1.RlimitStats {
	if r.ProcessLimit == 0 {
		return nil
	}
	limit, running := int64(r.ProcessLimit), int64(r.Processes)
	return &statsv1alpha1.RlimitStats{Time: metav1.NewTime(r.Time), MaxPID: &limit, NumOfRunningProcesses: &running}
}
