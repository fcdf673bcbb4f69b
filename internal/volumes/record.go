package volumes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/mounts"
)

// dirRecords, below a pod's volumes, holds a record for each volume that is not made of the
// pod itself. It is written before anything is mounted and removed when nothing is any more.
const dirRecords = "persistent"

// record is what taking a volume down needs, and starting a container once more.
type record struct {
	// Volume is the pod's name for it.
	Volume string `json:"volume"`
	// Claim is the name of the claim; empty for a volume of the pod's own.
	Claim    string `json:"claim,omitempty"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	// PV has what the claim is bound to: name, UID and spec.
	PV *corev1.PersistentVolume `json:"pv,omitempty"`
	// Source is the volume of a pod's own.
	Source *corev1.VolumeSource `json:"source,omitempty"`
}

func (m *Manager) recordPath(uid, volume string) string {
	return filepath.Join(m.diskDir(uid), dirRecords, volume+".json")
}

// record reads what was found earlier, nil for nothing.
func (v volume) record() (*record, error) {
	return readRecord(v.m.recordPath(string(v.pod.UID), v.spec.Name))
}

func readRecord(path string) (*record, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read record of volume: %w", err)
	}
	rec := &record{}
	if err := json.Unmarshal(data, rec); err != nil {
		return nil, fmt.Errorf("read record of volume %s: %w", path, err)
	}
	return rec, nil
}

// keep writes the record unless it is there.
func (v volume) keep(rec *record) error {
	path := v.m.recordPath(string(v.pod.UID), v.spec.Name)
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("write record of volume: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write record of volume: %w", err)
	}
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("write record of volume: %w", err)
	}
	return os.Rename(path+".new", path)
}

// records reads those of one pod.
func (m *Manager) records(uid string) ([]*record, error) {
	dir := filepath.Join(m.diskDir(uid), dirRecords)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list records of volumes: %w", err)
	}
	var out []*record
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		rec, err := readRecord(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		if rec != nil {
			out = append(out, rec)
		}
	}
	return out, nil
}

// usedByOthers says whether another pod of this node has the PersistentVolume.
func (m *Manager) usedByOthers(pv, uid string) (bool, error) {
	uids, err := m.List(context.Background())
	if err != nil {
		return false, err
	}
	for _, other := range uids {
		if other == uid {
			continue
		}
		records, err := m.records(other)
		if err != nil {
			return false, err
		}
		for _, rec := range records {
			if rec.PV != nil && rec.PV.Name == pv {
				return true, nil
			}
		}
	}
	return false, nil
}

// removePersistent takes down what other file systems lend to the pod. A record goes when its
// volume is down.
func (m *Manager) removePersistent(ctx context.Context, uid string) error {
	records, err := m.records(uid)
	if err != nil {
		return err
	}
	err = sideBySide(len(records), func(i int) error {
		if err := m.takeDown(ctx, uid, records[i]); err != nil {
			return records[i].fail(err)
		}
		return os.Remove(m.recordPath(uid, records[i].Volume))
	})
	if err != nil || len(records) == 0 {
		return err
	}
	return m.removeKubeletPod(uid)
}

// fail says which volume is not down, in a kubelet's words.
func (r *record) fail(err error) *Error {
	failure := &Error{Volume: r.Volume, Op: opTearDown, Err: err}
	if r.PV != nil {
		failure.Named = r.PV.Name
		if isBlock(r.PV) {
			failure.Op = opUnmap
		}
	}
	return failure
}

// takeDown undoes persistent or an inline volume; idempotent.
func (m *Manager) takeDown(ctx context.Context, uid string, rec *record) error {
	switch {
	case rec.isCSI():
		return m.unpublish(ctx, uid, rec)
	case rec.Source != nil && rec.Source.NFS != nil:
		return m.unmountNFS(ctx, uid, rec.Volume)
	case rec.PV == nil:
		return nil
	case rec.PV.Spec.NFS != nil:
		return m.unmountNFS(ctx, uid, rec.PV.Name)
	case rec.PV.Spec.Local != nil:
		return m.releaseLocal(uid, rec.PV)
	}
	return nil
}

// removeKubeletPod removes the pod's empty directories below the kubelet's, never what is in
// one or mounted on it.
func (m *Manager) removeKubeletPod(uid string) error {
	top := m.opts.Layout.KubeletPod(uid)
	var dirs []string
	err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case !entry.IsDir():
			return nil
		}
		if mounted, err := mounts.IsMountPoint(path); err != nil || mounted {
			return errors.Join(err, fs.SkipDir)
		}
		dirs = append(dirs, path)
		return nil
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		_ = os.Remove(dirs[i]) //nolint:errcheck // what is not empty is somebody's
	}
	return err
}
