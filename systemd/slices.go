package systemd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// podSlicePattern are the names that a kubelet gives to pods' slices.
const podSlicePattern = "kubepods*-pod*.slice"

// slicesAtATime is how many slices are made at once: systemd does one thing after the other,
// and with all slices of many pods before it the first pod would start after the last slice.
const slicesAtATime = 4

// EnsureSlice implements Runtime.
func (m *Manager) EnsureSlice(ctx context.Context, slice Slice) error {
	if err := checkText(slice.Name, slice.Description); err != nil {
		return fmt.Errorf("slice %q: %w", slice.Name, err)
	}
	if !strings.HasSuffix(slice.Name, ".slice") {
		return fmt.Errorf("start slice %q: it is not a slice's name", slice.Name)
	}
	if err := m.slices.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("start slice %s: %w", slice.Name, err)
	}
	defer m.slices.Release(1)
	for {
		result, err := m.startTransient(ctx, slice.Name, sliceProperties(slice, m.cgroup))
		switch {
		case err == nil && result == "done":
			return nil
		case err == nil:
			return fmt.Errorf("start slice %s: job result %q", slice.Name, result)
		case isBusError(err, errUnitExists):
			return m.SetResources(ctx, slice.Name, slice.Resources)
		case !errors.Is(err, errJobLost):
			return fmt.Errorf("start slice %s: %w", slice.Name, err)
		}
	}
}

// RemoveSlice implements Runtime.
func (m *Manager) RemoveSlice(ctx context.Context, name string) error {
	_, err := m.call(ctx, "KillUnit", name, "all", int32(syscall.SIGKILL))
	if err != nil && !isBusError(err, errNoSuchUnit, errNoSuchProcess, errUnknownProcess) {
		return fmt.Errorf("kill slice %s: %w", name, err)
	}
	return m.stop(ctx, name)
}

// ListSlices implements Runtime.
func (m *Manager) ListSlices(ctx context.Context) ([]string, error) {
	units, err := m.listPattern(ctx, podSlicePattern)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, unit := range units {
		if unit.ActiveState == "active" || unit.ActiveState == "deactivating" {
			names = append(names, unit.Name)
		}
	}
	return names, nil
}

// SetResources implements Runtime. What is nil stays as it is.
func (m *Manager) SetResources(ctx context.Context, name string, resources Resources) error {
	props := resourceProperties(resources, m.cgroup)
	if len(props) == 0 {
		return nil
	}
	if _, err := m.call(ctx, "SetUnitProperties", name, true, props); err != nil {
		names := make([]string, len(props))
		for i, p := range props {
			names[i] = p.Name
		}
		return fmt.Errorf("set %s of %s: %w", strings.Join(names, ", "), name, err)
	}
	return nil
}
