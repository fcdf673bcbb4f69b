package volumes

import (
	"context"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	mountutils "k8s.io/mount-utils"
	utilexec "k8s.io/utils/exec"

	"github.com/vk-metal/vk-metal/internal/csi"
	"github.com/vk-metal/vk-metal/internal/mounts"
)

const (
	// growEvery is how often claims of local volumes are asked whether they have grown: a node may
	// not watch claims.
	growEvery = time.Minute
	growLimit = 2 * time.Minute // for one volume
)

// Run grows local volumes until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	tick := time.NewTicker(growEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			m.growAll(ctx)
		}
	}
}

// growAll looks at each local volume that pods of this node have, once whoever has it.
func (m *Manager) growAll(ctx context.Context) {
	if m.opts.Claims == nil {
		return
	}
	uids, err := m.List(ctx)
	if err != nil {
		m.log.WarnContext(ctx, "Volumes cannot be looked at", "err", err)
	}
	seen := map[string]bool{}
	for _, uid := range uids {
		records, err := m.records(uid)
		if err != nil {
			m.log.WarnContext(ctx, "Volumes cannot be looked at", "uid", uid, "err", err)
		}
		for _, rec := range records {
			if rec.PV == nil || rec.PV.Spec.Local == nil || rec.PV.Spec.ClaimRef == nil || rec.ReadOnly || seen[rec.PV.Name] {
				continue
			}
			seen[rec.PV.Name] = true
			if err := m.grow(ctx, rec.PV); err != nil && ctx.Err() == nil {
				m.log.WarnContext(ctx, "Volume does not grow", "uid", uid, "volume", rec.PV.Name, "err", err)
			}
		}
	}
}

// grow does the node's part, if the claim says that there is one, and tells the claim.
func (m *Manager) grow(ctx context.Context, pv *corev1.PersistentVolume) error {
	ctx, cancel := context.WithTimeout(ctx, growLimit)
	defer cancel()
	ref := pv.Spec.ClaimRef
	claim, err := m.opts.Claims.Claim(ctx, ref.Namespace, ref.Name)
	if apierrors.IsNotFound(err) || err == nil && (claim.UID != ref.UID || !csi.Growing(claim)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read claim: %w", err)
	}
	now, err := m.opts.Claims.PersistentVolume(ctx, pv.Name)
	if err != nil {
		return fmt.Errorf("read PersistentVolume: %w", err)
	}
	size := now.Spec.Capacity[corev1.ResourceStorage]
	if has, known := claim.Status.Capacity[corev1.ResourceStorage]; !known || size.Cmp(has) <= 0 {
		return nil
	}
	if err := m.growFileSystem(pv); err != nil {
		return err
	}
	return m.opts.Claims.Grown(ctx, claim, size)
}

// growFileSystem makes the file system as large as its disk. What is not a disk that the node has
// mounted is as large as it is.
func (m *Manager) growFileSystem(pv *corev1.PersistentVolume) error {
	defer m.shared.Lock(pv.Name)()
	dir := m.localMounts(pv.Name)
	st, err := os.Stat(pv.Spec.Local.Path)
	if err != nil {
		return err
	}
	if isBlock(pv) || st.Mode()&os.ModeDevice == 0 {
		return nil
	}
	mounted, err := mounts.IsMountPoint(dir)
	if err != nil || !mounted {
		return err
	}
	if _, err := mountutils.NewResizeFs(utilexec.New()).Resize(pv.Spec.Local.Path, dir); err != nil {
		return fmt.Errorf("grow the file system of %s: %w", pv.Spec.Local.Path, err)
	}
	return nil
}

// Grown implements Claims.
func (a APIClaims) Grown(ctx context.Context, claim *corev1.PersistentVolumeClaim, size resource.Quantity) error {
	return csi.TellGrown(ctx, a.Client, claim, size)
}
