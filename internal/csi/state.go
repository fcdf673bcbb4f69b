package csi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// place names a volume of a pod.
type place struct{ uid, name string }

// publication is a volume that the driver was asked to publish in this boot.
type publication struct {
	Driver string `json:"driver"`
	Handle string `json:"handle"`
	// Attach says that the volume is attached to the node by the cluster.
	Attach bool `json:"attach,omitempty"`
	// Done says that it has been published: it is not asked for again.
	Done  bool `json:"done,omitempty"`
	Group bool `json:"group,omitempty"`
	// Labelled says that it is mounted with its SELinux label.
	Labelled bool `json:"labelled,omitempty"`
	// Republish and Expand say what is to be seen to while it is published.
	Republish bool `json:"republish,omitempty"`
	Expand    bool `json:"expand,omitempty"`

	volume *Volume // as last prepared by this agent; nil before
}

func (m *Manager) statePath(p place) string {
	return filepath.Join(m.o.Layout.Run, "csi", p.uid, p.name+".json")
}

// loadPublished reads what an agent before this one has left.
func (m *Manager) loadPublished() error {
	files, err := filepath.Glob(filepath.Join(m.o.Layout.Run, "csi", "*", "*.json"))
	if err != nil {
		return err
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		pub := &publication{}
		if err := json.Unmarshal(data, pub); err != nil {
			return fmt.Errorf("read %s: %w", file, err)
		}
		m.published[place{filepath.Base(filepath.Dir(file)), strings.TrimSuffix(filepath.Base(file), ".json")}] = pub
	}
	return nil
}

// keep writes down what is done with a volume, before and after.
func (m *Manager) keep(p place, pub *publication) error {
	if err := writeJSON(m.statePath(p), pub); err != nil {
		return fmt.Errorf("note CSI volume: %w", err)
	}
	m.mu.Lock()
	m.published[p] = pub
	m.mu.Unlock()
	return nil
}

func (m *Manager) forget(p place) error {
	m.mu.Lock()
	delete(m.published, p)
	m.mu.Unlock()
	err := os.Remove(m.statePath(p))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget CSI volume: %w", err)
	}
	_ = os.Remove(filepath.Dir(m.statePath(p))) //nolint:errcheck // the pod may have others
	return nil
}

func (m *Manager) publication(p place) *publication {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.published[p]
}

// staged says whether a pod of the node has the volume, so that it is staged.
func (m *Manager) staged(s source) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, pub := range m.published {
		if pub.Done && pub.Driver == s.driver && pub.Handle == s.handle {
			return true
		}
	}
	return false
}

// shared says whether another pod of the node uses the volume.
func (m *Manager) shared(driver, handle string, but place) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p, pub := range m.published {
		if p != but && pub.Driver == driver && pub.Handle == handle {
			return true
		}
	}
	return false
}

// InUse lists the attached volumes that are or may be in use: they are not to be detached.
func (m *Manager) InUse() []corev1.UniqueVolumeName {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []corev1.UniqueVolumeName
	for _, pub := range m.published {
		if pub.Attach {
			names = append(names, uniqueName(pub.Driver, pub.Handle))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// saveVolumeData leaves what a kubelet leaves beside its volumes (vol_data.json).
func (m *Manager) saveVolumeData(dir, name string, s source) error {
	data := map[string]string{
		"specVolID": name, "volumeHandle": s.handle, "driverName": s.driver, "nodeName": m.o.NodeName,
		"volumeLifecycleMode": string(s.mode), "attachmentID": attachmentName(s, m.o.NodeName),
	}
	if s.mode == storagev1.VolumeLifecycleEphemeral {
		delete(data, "attachmentID")
	}
	return writeJSON(filepath.Join(dir, dataFile), data)
}

const dataFile = "vol_data.json"

// writeJSON replaces a file as a whole.
func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
