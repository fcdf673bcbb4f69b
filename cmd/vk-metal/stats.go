package main

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/vk-metal/vk-metal/internal/node"
	"github.com/vk-metal/vk-metal/internal/nodestats"
	"github.com/vk-metal/vk-metal/internal/volumes"
	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/systemd"
)

// figures joins the server's and the units' figures for nodestats.
type figures struct {
	host    node.Host
	systemd *systemd.Manager
	pods    func() []*corev1.Pod
	volumes *volumes.Manager
}

var _ nodestats.Source = figures{}

// Node implements nodestats.Source. Pressure is told on cgroup v2, as by a kubelet.
func (f figures) Node(ctx context.Context) (nodestats.Reading, error) {
	memory := f.host.Meminfo()
	used, _ := f.host.WorkingSet()
	cpu, err := f.host.CPUTime()
	reading := nodestats.Reading{
		Time: time.Now(), CPU: cpu,
		Memory:     uint64(memory["MemTotal"] - memory["MemFree"]),
		WorkingSet: uint64(used),
		RSS:        uint64(memory["AnonPages"]),
		Limit:      uint64(memory["MemTotal"]),
	}
	if all, err := f.systemd.Stats(ctx, systemd.RootSlice); err == nil {
		reading.CPUPressure, reading.MemoryPressure, reading.IOPressure = psi(all.CPUPressure), psi(all.MemoryPressure), psi(all.IOPressure)
	}
	return reading, err
}

// Pods implements nodestats.Source: the slices of the units that run, with their containers.
func (f figures) Pods(ctx context.Context) ([]nodestats.Pod, error) {
	units, err := f.systemd.List(ctx)
	if err != nil {
		return nil, err
	}
	pods := map[string]*nodestats.Pod{}
	var order []string
	for _, unit := range units {
		if !unit.Running() {
			continue
		}
		id := unit.Identity
		if pods[id.PodUID] == nil {
			reading, err := f.read(ctx, unit.Slice)
			if err != nil {
				continue
			}
			pods[id.PodUID] = &nodestats.Pod{Namespace: id.PodNamespace, Name: id.PodName, UID: id.PodUID, Reading: reading, StartedAt: unit.StartedAt}
			order = append(order, id.PodUID)
		}
		if id.Container == podplan.PauseName {
			continue // in the pod's figures, and no container of its own
		}
		if reading, err := f.read(ctx, unit.Name); err == nil {
			pod := pods[id.PodUID]
			pod.Containers = append(pod.Containers, nodestats.Container{Name: id.Container, StartedAt: unit.StartedAt, Reading: reading})
		}
	}
	var list []nodestats.Pod
	for _, uid := range order {
		list = append(list, *pods[uid])
	}
	f.describe(ctx, list)
	return list, nil
}

// describe takes the pods' start from their status, where it is known, and adds their volumes.
func (f figures) describe(ctx context.Context, list []nodestats.Pod) {
	known := map[string]*corev1.Pod{}
	for _, pod := range f.pods() {
		known[string(pod.UID)] = pod
	}
	for i := range list {
		pod := known[list[i].UID]
		if pod == nil {
			continue
		}
		if pod.Status.StartTime != nil {
			list[i].StartedAt = pod.Status.StartTime.Time
		}
		for _, usage := range f.volumes.Usage(ctx, pod) {
			list[i].Volumes = append(list[i].Volumes, volumeStats(pod, usage))
		}
	}
}

func volumeStats(pod *corev1.Pod, usage volumes.Usage) statsv1alpha1.VolumeStats {
	stats := statsv1alpha1.VolumeStats{Name: usage.Volume}
	if usage.Claim != "" {
		stats.PVCRef = &statsv1alpha1.PVCReference{Name: usage.Claim, Namespace: pod.Namespace}
	}
	stats.Time = metav1.NewTime(usage.Time)
	for dst, value := range map[**uint64]int64{
		&stats.AvailableBytes: usage.Available, &stats.CapacityBytes: usage.Capacity, &stats.UsedBytes: usage.Used,
		&stats.InodesFree: usage.InodesFree, &stats.Inodes: usage.Inodes, &stats.InodesUsed: usage.InodesUsed,
	} {
		*dst = ptr(uint64(max(0, value)))
	}
	if usage.Abnormal != nil {
		stats.VolumeHealthStats = &statsv1alpha1.VolumeHealthStats{Abnormal: *usage.Abnormal}
	}
	return stats
}

func (f figures) read(ctx context.Context, name string) (nodestats.Reading, error) {
	s, err := f.systemd.Stats(ctx, name)
	return nodestats.Reading{
		Time: s.Time, CPU: s.CPUUsage, Memory: s.MemoryUsage, WorkingSet: s.MemoryWorkingSet, RSS: s.MemoryRSS, Limit: s.MemoryLimit,
		PageFaults: s.PageFaults, MajorPageFaults: s.MajorPageFaults, Processes: s.Processes,
		CPUPressure: psi(s.CPUPressure), MemoryPressure: psi(s.MemoryPressure), IOPressure: psi(s.IOPressure),
	}, err
}

// psi passes the kernel's microseconds on, as the kubelet does (in spite of the API's comment).
func psi(p *systemd.Pressure) *statsv1alpha1.PSIStats {
	if p == nil {
		return nil
	}
	return &statsv1alpha1.PSIStats{Some: statsv1alpha1.PSIData(p.Some), Full: statsv1alpha1.PSIData(p.Full)}
}

// NodeFS implements nodestats.Source.
func (f figures) NodeFS() (statsv1alpha1.FsStats, error) { return fsStats(f.host.Storage) }

// ImageFS implements nodestats.Source.
func (f figures) ImageFS() (statsv1alpha1.FsStats, error) { return fsStats(f.host.Images) }

func fsStats(dir string) (statsv1alpha1.FsStats, error) {
	fs, err := node.Statfs(dir)
	if err != nil {
		return statsv1alpha1.FsStats{}, err
	}
	if fs.Size <= 0 {
		return statsv1alpha1.FsStats{}, errors.New("read file system: it has no size")
	}
	stats := statsv1alpha1.FsStats{Time: metav1.Now()}
	for dst, value := range map[**uint64]int64{
		&stats.AvailableBytes: fs.Available, &stats.CapacityBytes: fs.Size, &stats.UsedBytes: fs.Size - fs.Free,
		&stats.InodesFree: fs.InodesFree, &stats.Inodes: fs.Inodes, &stats.InodesUsed: fs.Inodes - fs.InodesFree,
	} {
		*dst = ptr(uint64(value))
	}
	return stats, nil
}
