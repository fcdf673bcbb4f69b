package provider

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/claims"
	"github.com/vk-metal/vk-metal/internal/devices"
	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

// opDevices allocates the pod's devices; opPrepareDevices begins the names of the operations
// that make a container's ready for a start.
const (
	opDevices        = "devices"
	opPrepareDevices = "devices/"
)

// allocateDevices lends a pod that is new its devices, before it is admitted. refused is why it
// cannot be; ready is false while that is not known.
func (w *worker) allocateDevices(pod *corev1.Pod) (ready bool, refused *podplan.Refusal) {
	if w.p.deps.Devices == nil || !w.p.deps.Devices.Wants(pod) {
		return true, nil
	}
	o := w.begin(opDevices, time.Second, func(ctx context.Context) (any, error) {
		var refusal string
		err := w.step("devices", func() error {
			err := w.p.deps.Devices.Allocate(ctx, pod)
			if errors.Is(err, devices.ErrNotYet) || err == nil {
				return err
			}
			refusal = err.Error()
			return nil
		})
		return refusal, err
	})
	switch {
	case !o.done:
		return false, nil
	case o.value.(string) != "":
		return true, &podplan.Refusal{
			Field: "spec.containers", Admission: "UnexpectedAdmissionError",
			Reason: fmt.Sprintf("Allocate failed due to %s, which is unexpected", o.value),
		}
	}
	return true, nil
}

// lentDevices is what the attempt gets with its container's devices. wait is as with inputs.
func (w *worker) lentDevices(pod *corev1.Pod, c podplan.Container, attempt int) (podplan.Lent, *podplan.Waiting) {
	fromPlugins := w.p.deps.Devices != nil && w.p.deps.Devices.Wants(pod)
	if !fromPlugins && !claims.Wants(pod) {
		return podplan.Lent{}, nil
	}
	o := w.begin(fmt.Sprintf("%s%s/%d", opPrepareDevices, c.Name, attempt), time.Second, func(ctx context.Context) (any, error) {
		var lent devices.Lent
		var err error
		if fromPlugins {
			lent, err = w.p.deps.Devices.Prepare(ctx, string(w.uid), c.Name)
		}
		if err == nil {
			err = w.claimed(pod, c, &lent)
		}
		if err != nil {
			return nil, err
		}
		return planLent(lent)
	})
	if o.err != nil && !o.done {
		w.event(pod, &c, corev1.EventTypeWarning, "Failed", "Error: "+o.err.Error())
		return podplan.Lent{}, &podplan.Waiting{Reason: podplan.CreateContainerError, Message: o.err.Error()}
	}
	if !o.done {
		return podplan.Lent{}, &podplan.Waiting{}
	}
	return o.value.(podplan.Lent), nil
}

// giveBackDevices lets other pods have the devices. It comes before the pod's end is reported: the
// scheduler counts on them from then on. What fails is done again with the rest that the pod holds.
func (w *worker) giveBackDevices() {
	if w.p.deps.Devices == nil {
		return
	}
	if err := w.p.deps.Devices.Release(string(w.uid)); err != nil {
		w.log.Warn("Cannot take back the devices of an ended pod", "err", err)
	}
}

// planLent looks at what the host has at the places that the plugin names.
func planLent(lent devices.Lent) (podplan.Lent, error) {
	out := podplan.Lent{Env: lent.Env, Groups: lent.Groups}
	for _, h := range lent.Hooks {
		out.Hooks = append(out.Hooks, launchspec.Hook(h))
	}
	for _, m := range lent.Mounts {
		st, err := os.Stat(m.HostPath)
		if err != nil {
			return out, fmt.Errorf("find what a device plugin mounts: %w", err)
		}
		out.Mounts = append(out.Mounts, podplan.LentMount{
			Source: m.HostPath, Target: m.ContainerPath, File: !st.IsDir(),
			Readonly: m.ReadOnly, NoSuid: m.NoSuid, NoDev: m.NoDev, NoExec: m.NoExec,
		})
	}
	for _, d := range lent.Devices {
		nodes, err := deviceNodes(d)
		if err != nil {
			return out, fmt.Errorf("find device %s of a device plugin: %w", d.HostPath, err)
		}
		out.Devices = append(out.Devices, nodes...)
	}
	for _, n := range lent.Nodes {
		out.Devices = append(out.Devices, podplan.LentDevice{
			Path: n.Path, Block: n.Block, Major: n.Major, Minor: n.Minor, Mode: n.Mode, UID: n.UID, GID: n.GID, Access: n.Permissions,
		})
	}
	return out, nil
}

// deviceNodes is the device, or all devices of a directory.
func deviceNodes(d devices.Device) ([]podplan.LentDevice, error) {
	var nodes []podplan.LentDevice
	err := filepath.WalkDir(d.HostPath, func(at string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Stat(at, &st); err != nil {
			return err
		}
		node := podplan.LentDevice{
			Path: path.Join(d.ContainerPath, at[len(d.HostPath):]), Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev),
			Mode: st.Mode & 0o777, UID: st.Uid, GID: st.Gid, Access: d.Permissions,
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFCHR:
			nodes = append(nodes, node)
		case unix.S_IFBLK:
			node.Block = true
			nodes = append(nodes, node)
		}
		return nil
	})
	if err == nil && len(nodes) == 0 {
		err = errors.New("it is not a device")
	}
	return nodes, err
}
