package main

import (
	"context"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/cadvisor"
	"github.com/vk-metal/vk-metal/internal/node"
	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/provider/podstatus"
	"github.com/vk-metal/vk-metal/systemd"
)

var _ cadvisor.Source = figures{}

// nodeSlices are the cgroups of the node whose figures are told besides those of pods.
var nodeSlices = []string{
	systemd.RootSlice, "system.slice", "user.slice", podplan.SliceRoot, podplan.SliceBurstable, podplan.SliceBestEffort,
}

// Cgroups implements cadvisor.Source.
func (f figures) Cgroups(ctx context.Context) ([]cadvisor.Cgroup, error) {
	units, err := f.systemd.List(ctx)
	if err != nil {
		return nil, err
	}
	var groups []cadvisor.Cgroup
	for _, slice := range nodeSlices {
		if group, err := f.cgroup(ctx, slice); err == nil {
			groups = append(groups, group)
		}
	}
	if len(groups) > 0 {
		f.whole(&groups[0])
	}
	known, slices := f.known(), map[string]bool{}
	fs, fsErr := node.Statfs(f.host.Storage)
	for _, unit := range units {
		if !unit.Running() {
			continue
		}
		id := unit.Identity
		if !slices[unit.Slice] {
			group, err := f.cgroup(ctx, unit.Slice)
			if err != nil {
				continue
			}
			slices[unit.Slice] = true
			group.Namespace, group.Pod, group.Links = id.PodNamespace, id.PodName, links(known[id.PodUID], unit.MainPID)
			groups = append(groups, group)
		}
		group, err := f.cgroup(ctx, unit.Name)
		if id.Container == podplan.PauseName || err != nil {
			continue // in the pod's figures, and no container of its own
		}
		group.Namespace, group.Pod, group.Container, group.StartedAt = id.PodNamespace, id.PodName, id.Container, unit.StartedAt
		group.Name = strings.TrimPrefix(podstatus.ContainerID(id.PodUID, id.Container, id.Attempt), podstatus.ContainerIDPrefix)
		group.Image = imageOf(known[id.PodUID], id.Container)
		if fsErr == nil {
			group.Layer = f.layer(id.PodUID, id.Container, fs)
		}
		groups = append(groups, group)
	}
	return groups, nil
}

func (f figures) cgroup(ctx context.Context, name string) (group cadvisor.Cgroup, err error) {
	if group.Stats, err = f.systemd.Stats(ctx, name); err != nil {
		return group, err
	}
	group.Group, err = f.systemd.Cgroup(ctx, name)
	return group, err
}

// whole adds to the root cgroup what the kernel tells of the server only.
func (f figures) whole(root *cadvisor.Cgroup) {
	memory := f.host.Meminfo()
	used, _ := f.host.WorkingSet()
	root.Stats.MemoryUsage, root.Stats.MemoryWorkingSet = uint64(memory["MemTotal"]-memory["MemFree"]), uint64(used)
	root.Stats.MemoryRSS, root.Stats.MemoryCache, root.Stats.MemoryMapped = uint64(memory["AnonPages"]), uint64(memory["Cached"]), uint64(memory["Mapped"])
	root.Stats.MemoryLimit, root.StartedAt = uint64(memory["MemTotal"]), f.host.BootTime()
	if cpu, err := f.host.CPUTime(); err == nil {
		root.Stats.CPUUsage = cpu
	}
	root.Stats.Time = time.Now()
	root.Links, _ = cadvisor.Links(1)
}

func (f figures) known() map[string]*corev1.Pod {
	known := map[string]*corev1.Pod{}
	for _, pod := range f.pods() {
		known[string(pod.UID)] = pod
	}
	return known
}

// layer is what the container has written as it was last measured, with the file system's size.
func (f figures) layer(podUID, container string, fs node.Filesystem) *cadvisor.Layer {
	written, known := f.disk.Newest(f.layout.Layers(podUID, container), diskAge)
	if !known {
		return nil
	}
	return &cadvisor.Layer{
		Used: uint64(max(0, written.Bytes)), Capacity: uint64(max(0, fs.Size)), Inodes: uint64(max(0, fs.Inodes)), InodesFree: uint64(max(0, fs.InodesFree)),
	}
}

// links reads the pod's own network through one of its processes; the node's is told once, with the root.
func links(pod *corev1.Pod, pid int) []cadvisor.Link {
	if pod == nil || pod.Spec.HostNetwork || pid <= 0 {
		return nil
	}
	list, err := cadvisor.Links(pid)
	if err != nil {
		return nil // it has just ended
	}
	return list
}

// imageOf is what the container's status shows, else what its spec names.
func imageOf(pod *corev1.Pod, container string) string {
	if pod == nil {
		return ""
	}
	for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == container && list[i].Image != "" {
				return list[i].Image
			}
		}
	}
	c, _ := podplan.Find(pod, container)
	return c.Image
}

// Machine implements cadvisor.Source.
func (f figures) Machine() cadvisor.Machine {
	memory, info := f.host.Meminfo(), f.host.Info("")
	cores, sockets := f.host.Topology()
	return cadvisor.Machine{
		BootID: info.BootID, MachineID: info.MachineID, SystemUUID: info.SystemUUID,
		KernelVersion: info.KernelVersion, OSVersion: info.OSImage,
		CPUs: f.host.CPUs(), PhysicalCores: cores, Sockets: sockets, MemoryBytes: memory["MemTotal"], SwapBytes: memory["SwapTotal"],
	}
}
