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
	Processes                      uint64
	// CPUPressure, MemoryPressure and IOPressure are nil where the kernel does not tell.
	CPUPressure, MemoryPressure, IOPressure *statsv1alpha1.PSIStats
}

// Container is one running container.
type Container struct {
	Name      string
	StartedAt time.Time
	Reading   Reading
}

// Pod is one pod that has a cgroup.
type Pod struct {
	Namespace, Name, UID string
	StartedAt            time.Time
	Reading              Reading
	Containers           []Container
	Volumes              []statsv1alpha1.VolumeStats
}

// Source has the present figures.
type Source interface {
	// Node reads the whole server.
	Node(ctx context.Context) (Reading, error)
	// Pods reads all pods; one that ended meanwhile is left out.
	Pods(ctx context.Context) ([]Pod, error)
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

// Summary reads everything now. With onlyCPUAndMemory file systems are left out.
func (s *Summarizer) Summary(ctx context.Context, onlyCPUAndMemory bool) (*statsv1alpha1.Summary, error) {
	node, err := s.source.Node(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the node's figures: %w", err)
	}
	pods, err := s.source.Pods(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the pods' figures: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	summary := &statsv1alpha1.Summary{Node: statsv1alpha1.NodeStats{
		NodeName: s.nodeName, StartTime: metav1.NewTime(s.boot), CPU: s.cpu("node", node), Memory: memory(node), IO: diskIO(node),
	}}
	for i := range pods {
		summary.Pods = append(summary.Pods, s.pod(&pods[i]))
	}
	s.forget(time.Now())
	if !onlyCPUAndMemory {
		s.filesystems(&summary.Node)
	}
	return summary, nil
}

func (s *Summarizer) pod(pod *Pod) statsv1alpha1.PodStats {
	stats := statsv1alpha1.PodStats{
		PodRef:       statsv1alpha1.PodReference{Name: pod.Name, Namespace: pod.Namespace, UID: pod.UID},
		StartTime:    metav1.NewTime(pod.StartedAt),
		CPU:          s.cpu(pod.UID, pod.Reading),
		Memory:       memory(pod.Reading),
		IO:           diskIO(pod.Reading),
		ProcessStats: &statsv1alpha1.ProcessStats{ProcessCount: &pod.Reading.Processes},
		Containers:   []statsv1alpha1.ContainerStats{},
		VolumeStats:  pod.Volumes,
	}
	for _, c := range pod.Containers {
		// The start distinguishes attempts: their CPU clocks start anew.
		key := fmt.Sprintf("%s/%s/%d", pod.UID, c.Name, c.StartedAt.UnixNano())
		stats.Containers = append(stats.Containers, statsv1alpha1.ContainerStats{
			Name: c.Name, StartTime: metav1.NewTime(c.StartedAt), CPU: s.cpu(key, c.Reading), Memory: memory(c.Reading),
			IO: diskIO(c.Reading),
		})
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
