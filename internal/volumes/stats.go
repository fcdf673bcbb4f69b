package volumes

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/csi"
	"github.com/vk-metal/vk-metal/internal/mounts"
)

// Usage is what a volume takes and could take.
type Usage struct {
	Volume string
	// Claim is the name of the claim in the pod's namespace, empty for none.
	Claim string
	// Time is when it was measured.
	Time time.Time
	csi.Stats
}

const (
	// usageAge is how old figures may be (a kubelet's VolumeStatsAggPeriod). A pod that takes long to
	// measure is measured less often: no more than one part in usageShare of the time.
	usageAge   = time.Minute
	usageShare = 50
	// usageLimit bounds one measurement, and usagePatience how long it is waited for by who has
	// no older figures.
	usageLimit    = 5 * time.Minute
	usagePatience = 2 * time.Second
)

// usages are the newest figures, by the pod's UID.
type usages struct {
	mu   sync.Mutex
	pods map[string]*podUsage
}

type podUsage struct {
	list []Usage
	due  time.Time     // when they are too old
	busy chan struct{} // closed once newer ones are there; nil if nobody measures
}

// Usage returns figures of the pod's volumes that a kubelet has figures of: of those that this
// node made, and of those that have a file system, or a driver, of their own. What cannot
// be read is left out. Figures are up to a minute old; new ones are taken beside the caller.
func (m *Manager) Usage(ctx context.Context, pod *corev1.Pod) []Usage {
	list, busy := m.usages.get(string(pod.UID), func() []Usage {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), usageLimit)
		defer cancel()
		return m.measureAll(ctx, pod)
	})
	if list != nil || busy == nil {
		return list
	}
	timer := time.NewTimer(usagePatience)
	defer timer.Stop()
	select {
	case <-busy:
	case <-timer.C:
	case <-ctx.Done():
	}
	return m.usages.newest(string(pod.UID))
}

// get returns what is known, and has it measured anew where that is due.
func (u *usages) get(uid string, measure func() []Usage) (list []Usage, busy <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.pods[uid]
	if p == nil {
		p = &podUsage{}
		if u.pods == nil {
			u.pods = map[string]*podUsage{}
		}
		u.pods[uid] = p
	}
	if p.busy != nil || time.Now().Before(p.due) {
		return p.list, p.busy
	}
	p.busy = make(chan struct{})
	go func() {
		begun := time.Now()
		list := measure()
		u.mu.Lock()
		defer u.mu.Unlock()
		close(p.busy)
		p.list, p.busy, p.due = list, nil, begun.Add(max(usageAge, usageShare*time.Since(begun)))
	}()
	return p.list, p.busy
}

func (u *usages) newest(uid string) []Usage {
	u.mu.Lock()
	defer u.mu.Unlock()
	if p := u.pods[uid]; p != nil {
		return p.list
	}
	return nil
}

func (u *usages) forget(uid string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.pods, uid)
}

// measureAll measures the pod's volumes in the order of the spec.
func (m *Manager) measureAll(ctx context.Context, pod *corev1.Pod) []Usage {
	records, err := m.records(string(pod.UID))
	if err != nil {
		m.log.WarnContext(ctx, "Volumes cannot be measured", "uid", string(pod.UID), "err", err)
	}
	known := map[string]*record{}
	for _, rec := range records {
		known[rec.Volume] = rec
	}
	list := []Usage{}
	for _, v := range m.volumes(pod, PodInfo{}) {
		usage := Usage{Volume: v.spec.Name, Time: time.Now()}
		var stats *csi.Stats
		if rec := known[v.spec.Name]; rec != nil {
			usage.Claim = rec.Claim
			stats, err = m.measure(ctx, pod, rec)
		} else {
			stats, err = v.measureOwn(ctx)
		}
		if err != nil {
			m.log.DebugContext(ctx, "Volume cannot be measured", "uid", string(pod.UID), "volume", v.spec.Name, "err", err)
		}
		if stats != nil {
			usage.Stats = *stats
			list = append(list, usage)
		}
	}
	return list
}

// measureOwn measures what this node made of the pod: what it takes is its files' alone, what
// it could take its file system's.
func (v volume) measureOwn(ctx context.Context) (*csi.Stats, error) {
	dir := ""
	if src := v.spec.EmptyDir; src != nil {
		dir = v.emptyDirPath(src)
	} else if c, ok := v.content(); ok {
		dir = c.dir
	}
	if dir == "" {
		return nil, nil
	}
	stats, err := fileSystem(dir)
	if err != nil {
		return nil, err
	}
	used, err := v.m.opts.Disk.Measure(ctx, dir, usageAge)
	if err != nil {
		return nil, err
	}
	stats.Used, stats.InodesUsed = used.Bytes, used.Inodes
	return stats, nil
}

// measure measures what others lend.
func (m *Manager) measure(ctx context.Context, pod *corev1.Pod, rec *record) (*csi.Stats, error) {
	switch {
	case rec.isCSI() && m.opts.CSI != nil:
		return m.opts.CSI.Stats(ctx, rec.csi(pod))
	case rec.Source != nil && rec.Source.NFS != nil:
		return fileSystem(m.nfsPath(string(pod.UID), rec.Volume))
	case rec.PV == nil || isBlock(rec.PV):
		return nil, nil
	case rec.PV.Spec.NFS != nil:
		return fileSystem(m.nfsPath(string(pod.UID), rec.PV.Name))
	case rec.PV.Spec.Local == nil:
		return nil, nil // a directory of the host is not measured, as with a kubelet
	}
	path := rec.PV.Spec.Local.Path
	if mounted, err := mounts.IsMountPoint(m.localMounts(rec.PV.Name)); err == nil && mounted {
		path = m.localMounts(rec.PV.Name)
	}
	return fileSystem(path)
}

func fileSystem(path string) (*csi.Stats, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return nil, fmt.Errorf("read file system of %s: %w", path, err)
	}
	unit := st.Frsize
	return &csi.Stats{
		Capacity: int64(st.Blocks) * unit, Used: int64(st.Blocks-st.Bfree) * unit, Available: int64(st.Bavail) * unit,
		Inodes: int64(st.Files), InodesUsed: int64(st.Files - st.Ffree), InodesFree: int64(st.Ffree),
	}, nil
}
