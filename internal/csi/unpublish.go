package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	storagev1 "k8s.io/api/storage/v1"
)

// Unpublish undoes Publish; idempotent, and safe without Publish. Of v.Pod only the UID counts.
// With the node's last user the volume is unstaged.
func (m *Manager) Unpublish(ctx context.Context, v Volume) error {
	s, err := v.source()
	if err != nil {
		return nil //nolint:nilerr // then it was never published either
	}
	p := place{string(v.Pod.UID), v.Name}
	path := m.publishPath(p.uid, v.Name, s)
	defer m.handles.Lock(s.driver + "^" + s.handle)()
	if m.publication(p) == nil && !m.traces(p.uid, v.Name, s) {
		return nil // not a single call was made for it, or all has been undone
	}
	d, err := m.driver(s.driver)
	if err != nil {
		return fmt.Errorf("unpublish volume %s: %w", v.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := d.client.NodeUnpublishVolume(ctx, &csispec.NodeUnpublishVolumeRequest{VolumeId: s.handle, TargetPath: path}); err != nil {
		return fmt.Errorf("unpublish volume %s: %w", v.Name, err)
	}
	if err := removeTarget(path); err != nil {
		return fmt.Errorf("unpublish volume %s: %w", v.Name, err)
	}
	if s.mode == storagev1.VolumeLifecyclePersistent && !m.shared(s.driver, s.handle, p) {
		if err := m.unstage(ctx, d, v.Name, s); err != nil {
			return fmt.Errorf("unstage volume %s: %w", v.Name, err)
		}
	}
	if !s.block || !m.shared(s.driver, s.handle, p) {
		if err := removeData(m.dataDir(p.uid, v.Name, s)); err != nil {
			return fmt.Errorf("unpublish volume %s: %w", v.Name, err)
		}
	}
	m.dropTokens(v.Pod.UID)
	err = m.forget(p)
	m.o.InUseChanged()
	return err
}

func (m *Manager) dataDir(uid, name string, s source) string {
	if s.block {
		return m.dir("volumeDevices", name, "data")
	}
	return m.o.Layout.KubeletVolume(uid, pluginDir, name)
}

// traces says whether a publication of another boot, or of a kubelet, has left something.
func (m *Manager) traces(uid, name string, s source) bool {
	trace := filepath.Join(m.dataDir(uid, name, s), dataFile)
	if s.block { // the data file is for all pods
		trace = m.publishPath(uid, name, s)
	}
	_, err := os.Lstat(trace)
	return err == nil
}

// unstage undoes stage.
func (m *Manager) unstage(ctx context.Context, d *driver, name string, s source) error {
	path := m.stagingPath(name, s)
	caps, err := d.capabilities(ctx)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil && caps[canStage] {
		if _, err := d.client.NodeUnstageVolume(ctx, &csispec.NodeUnstageVolumeRequest{VolumeId: s.handle, StagingTargetPath: path}); err != nil {
			return err
		}
	}
	if err := removeTarget(path); err != nil || s.block {
		return err
	}
	return removeData(filepath.Dir(path))
}

// removeTarget removes what the driver should have removed. It deletes no data: a directory
// has to be empty, and a mount is not entered.
func removeTarget(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// removeData removes the data file and its directory.
func removeData(dir string) error {
	err := os.Remove(filepath.Join(dir, dataFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
