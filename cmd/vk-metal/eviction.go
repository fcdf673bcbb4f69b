package main

import (
	"context"
	"slices"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"github.com/vk-metal/vk-metal/internal/evictor"
	"github.com/vk-metal/vk-metal/internal/node"
	"github.com/vk-metal/vk-metal/internal/pressure"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

// newEvictor makes what ends pods before the server runs out of something.
func (a *agent) newEvictor(ctx context.Context) {
	stalls, err := evictor.Stalls(ctx, evictor.PressureFile)
	if err != nil {
		a.log.Info("the kernel does not tell of memory pressure: memory is looked at every ten seconds", "err", err)
	}
	host := a.nodeOptions().Host
	shared := sameFileSystem(host.Storage, host.Images)
	a.evictor = evictor.New(evictor.Options{
		Settings: a.cfg.Eviction.Settings(),
		Observe:  a.observePressure,
		Reclaim: func(s pressure.Signal) func(context.Context) error {
			// Layers of containers that have ended are gone already.
			if images := s == pressure.ImageFSAvailable || s == pressure.ImageFSInodesFree; s.Condition() == corev1.NodeDiskPressure && (images || shared) {
				return a.pods.imageGC.DeleteUnused
			}
			return nil
		},
		Evicted: a.kubelet.evicted,
		Pods:    a.pods.provider, Wake: stalls, Log: a.log, Changed: a.node.Changed,
		Event: func(kind, reason, message string) { a.recorder.Event(a.nodeReference(), kind, reason, message) },
	})
}

// pressure are the conditions that hold now for want of a resource.
func (a *agent) pressure() []corev1.NodeConditionType {
	if a.evictor == nil {
		return nil // not made yet
	}
	return a.evictor.Conditions()
}

// observePressure reads what is left on this server.
func (a *agent) observePressure(ctx context.Context) pressure.Observations {
	host := a.nodeOptions().Host
	seen := pressure.Observations{}
	used, total := host.WorkingSet()
	if total > 0 {
		seen[pressure.MemoryAvailable] = pressure.Observation{Available: total - used, Capacity: total}
	}
	if stats, err := a.pods.systemd.Stats(ctx, podplan.SliceRoot); err == nil && total > 0 {
		reserved := a.cfg.Reserved()
		allocatable := max(total-reserved.Memory().Value(), 0)
		seen[pressure.AllocatableMemory] = pressure.Observation{Available: allocatable - int64(stats.MemoryWorkingSet), Capacity: allocatable}
	}
	for _, fs := range []struct {
		dir           string
		bytes, inodes pressure.Signal
	}{{host.Storage, pressure.NodeFSAvailable, pressure.NodeFSInodesFree}, {host.Images, pressure.ImageFSAvailable, pressure.ImageFSInodesFree}} {
		have, err := node.Statfs(fs.dir)
		if err != nil || have.Size == 0 {
			continue
		}
		seen[fs.bytes] = pressure.Observation{Available: have.Available, Capacity: have.Size}
		if have.Inodes > 0 { // some file systems have no fixed number
			seen[fs.inodes] = pressure.Observation{Available: have.InodesFree, Capacity: have.Inodes}
		}
	}
	if used, limit, known := host.Threads(); known {
		seen[pressure.PIDAvailable] = pressure.Observation{Available: limit - used, Capacity: limit}
	}
	return seen
}

// tellEviction puts the settings in a kubelet's terms.
func (a *agent) tellEviction(c *kubeletconfig.KubeletConfiguration) {
	e := a.cfg.Eviction
	c.EvictionHard, c.EvictionSoft, c.EvictionSoftGracePeriod, c.EvictionMinimumReclaim = map[string]string{}, map[string]string{}, map[string]string{}, map[string]string{}
	for _, t := range e.Settings().Thresholds {
		switch signal := string(t.Signal); {
		case t.Signal == pressure.AllocatableMemory:
		case t.Hard():
			c.EvictionHard[signal] = t.Value.String()
		default:
			c.EvictionSoft[signal], c.EvictionSoftGracePeriod[signal] = t.Value.String(), t.Grace.String()
		}
	}
	for signal, amount := range e.MinimumReclaim {
		c.EvictionMinimumReclaim[string(signal)] = amount.String()
	}
	c.EvictionPressureTransitionPeriod.Duration = e.TransitionPeriod
	c.EvictionMaxPodGracePeriod = int32(e.MaxPodGracePeriod)
	c.MergeDefaultEvictionSettings = &e.MergeDefaults
}

// sameFileSystem says whether two directories share one; those that are not there do.
func sameFileSystem(dirs ...string) bool {
	var devices []uint64
	for _, dir := range dirs {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err == nil {
			devices = append(devices, st.Dev)
		}
	}
	return len(slices.Compact(devices)) <= 1
}
