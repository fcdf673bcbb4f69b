package main

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/vk-metal/vk-metal/internal/cadvisor"
	"github.com/vk-metal/vk-metal/internal/diskuse"
	"github.com/vk-metal/vk-metal/internal/node"
	"github.com/vk-metal/vk-metal/internal/nodestats"
	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/internal/volumes"
	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/systemd"
)

// figures joins the server's and the units' figures for nodestats.
type figures struct {
	host    node.Host
	systemd *systemd.Manager
	pods    func() []*corev1.Pod
	volumes usages
	layout  paths.Layout
	disk    *diskuse.Meter
}

// usages has the figures of a pod's volumes; *volumes.Manager implements it.
type usages interface {
	Usage(ctx context.Context, pod *corev1.Pod) []volumes.Usage
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
		Swap:       uint64(memory["SwapTotal"] - memory["SwapFree"]),
		SwapLimit:  uint64(memory["SwapTotal"]),
		Links:      nodeLinks(),
	}
	if threads, limit, ok := f.host.Threads(); ok {
		reading.Processes, reading.ProcessLimit = uint64(threads), uint64(limit)
	}
	if all, err := f.systemd.Stats(ctx, systemd.RootSlice); err == nil {
		reading.CPUPressure, reading.MemoryPressure, reading.IOPressure = psi(all.CPUPressure), psi(all.MemoryPressure), psi(all.IOPressure)
	}
	return reading, err
}

// nodeLinks are the node's own network.
func nodeLinks() *statsv1alpha1.NetworkStats {
	links, _ := cadvisor.Links(1)
	return networkStats(links)
}

// Pods implements nodestats.Source: the slices of the units that run, with their containers.
func (f figures) Pods(ctx context.Context, whole bool) ([]nodestats.Pod, error) {
	units, err := f.systemd.List(ctx)
	if err != nil {
		return nil, err
	}
	pods, known := map[string]*nodestats.Pod{}, f.known()
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
			if whole {
				pods[id.PodUID].Network = networkStats(links(known[id.PodUID], unit.MainPID))
			}
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
	f.describe(ctx, known, list, whole)
	return list, nil
}

// networkStats tells of all links, and of the first as the one that counts; nil for none.
func networkStats(links []cadvisor.Link) *statsv1alpha1.NetworkStats {
	if len(links) == 0 {
		return nil
	}
	stats := &statsv1alpha1.NetworkStats{Time: metav1.Now()}
	for _, l := range links {
		stats.Interfaces = append(stats.Interfaces, statsv1alpha1.InterfaceStats{
			Name: l.Name, RxBytes: &l.Received.Bytes, RxErrors: &l.Received.Errors, TxBytes: &l.Sent.Bytes, TxErrors: &l.Sent.Errors,
		})
	}
	stats.InterfaceStats = stats.Interfaces[0]
	return stats
}

// describe takes the pods' start from their status, where it is known, and adds what they take of
// disks.
func (f figures) describe(ctx context.Context, known map[string]*corev1.Pod, list []nodestats.Pod, whole bool) {
	for i := range list {
		pod := known[list[i].UID]
		if pod == nil {
			continue
		}
		if pod.Status.StartTime != nil {
			list[i].StartedAt = pod.Status.StartTime.Time
		}
		if whole {
			f.addDisks(ctx, &list[i], pod)
		}
	}
}

// diskAge is how old figures of layers and logs may be, as those of volumes.
const diskAge = time.Minute

// addDisks adds what the pod takes of its node's disk, and of its volumes. All of its containers
// count, also those that have ended.
func (f figures) addDisks(ctx context.Context, into *nodestats.Pod, pod *corev1.Pod) {
	var sum *nodestats.Disk
	add := func(at time.Time, bytes, inodes int64) *nodestats.Disk {
		one := &nodestats.Disk{Time: at, Bytes: uint64(max(0, bytes)), Inodes: uint64(max(0, inodes))}
		if sum == nil {
			sum = &nodestats.Disk{Time: at}
		}
		sum.Bytes, sum.Inodes = sum.Bytes+one.Bytes, sum.Inodes+one.Inodes
		return one
	}
	newest := func(dir string) *nodestats.Disk {
		sample, known := f.disk.Newest(dir, diskAge)
		if !known {
			return nil
		}
		return add(sample.Time, sample.Bytes, sample.Inodes)
	}
	for _, c := range podplan.Containers(pod) {
		rootfs := newest(f.layout.Layers(into.UID, c.Name))
		logs := newest(f.layout.ContainerLogs(pod.Namespace, pod.Name, into.UID, c.Name))
		for i := range into.Containers {
			if into.Containers[i].Name == c.Name {
				into.Containers[i].Rootfs, into.Containers[i].Logs = rootfs, logs
			}
		}
	}
	local := map[string]bool{}
	for i := range pod.Spec.Volumes {
		local[pod.Spec.Volumes[i].Name] = podplan.OnNodeDisk(&pod.Spec.Volumes[i])
	}
	for _, usage := range f.volumes.Usage(ctx, pod) {
		into.Volumes = append(into.Volumes, volumeStats(pod, usage))
		if local[usage.Volume] {
			add(usage.Time, usage.Used, usage.InodesUsed)
		}
	}
	into.Ephemeral = sum
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
		PageFaults: s.PageFaults, MajorPageFaults: s.MajorPageFaults, Swap: s.MemorySwap, Processes: s.Processes,
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
