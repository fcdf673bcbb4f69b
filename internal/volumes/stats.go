package volumes

import (
	"context"
	"fmt"

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
	csi.Stats
}

// Usage reads figures of the pod's volumes that have a file system, or a driver, of their own;
// those that cannot be read are left out.
func (m *Manager) Usage(ctx context.Context, pod *corev1.Pod) []Usage {
	records, err := m.records(string(pod.UID))
	if err != nil {
		m.log.WarnContext(ctx, "Volumes cannot be measured", "uid", string(pod.UID), "error", err)
		return nil
	}
	var list []Usage
	for _, rec := range records {
		stats, err := m.measure(ctx, pod, rec)
		if err != nil {
			m.log.DebugContext(ctx, "Volume cannot be measured", "uid", string(pod.UID), "volume", rec.Volume, "error", err)
		}
		if stats != nil {
			list = append(list, Usage{Volume: rec.Volume, Claim: rec.Claim, Stats: *stats})
		}
	}
	return list
}

func (m *Manager) measure(ctx context.Context, pod *corev1.Pod, rec *record) (*csi.Stats, error) {
	switch {
	case rec.isCSI() && m.opts.CSI != nil:
		return m.opts.CSI.Stats(ctx, rec.csi(pod))
	case rec.PV == nil || isBlock(rec.PV) || rec.PV.Spec.Local == nil:
		return nil, nil
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
