package provider

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/volumes"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

// volumes makes ready what containers use, once more if a container has come that uses more.
func (w *worker) volumes(pod *corev1.Pod) *op {
	begin := func() *op {
		return w.begin(opVolumes, 500*time.Millisecond, func(ctx context.Context) (any, error) { return w.prepareVolumes(ctx, pod) })
	}
	vols := begin()
	if vols.done && volumes.Lacks(pod, vols.value.(map[string]volumes.Mounted)) {
		w.mu.Lock()
		delete(w.ops, opVolumes)
		w.mu.Unlock()
		return begin()
	}
	return vols
}

func (w *worker) prepareVolumes(ctx context.Context, pod *corev1.Pod) (any, error) {
	var mounted map[string]volumes.Mounted
	err := w.step("volumes", func() (err error) {
		mounted, err = w.p.deps.Volumes.Prepare(ctx, pod, w.volumeInfo(pod))
		return err
	})
	return mounted, err
}

func (w *worker) volumeInfo(pod *corev1.Pod) volumes.PodInfo {
	info := volumes.PodInfo{NodeName: w.p.deps.NodeName, HostIPs: w.p.deps.HostIPs()}
	if sc := pod.Spec.SecurityContext; sc != nil {
		info.FSGroup = sc.FSGroup
	}
	if host, err := w.podSELinux(); err == nil { // else the pod's start says so
		info.MountLabels = podplan.MountLabels(pod, host)
	}
	for _, ip := range pod.Status.PodIPs {
		info.PodIPs = append(info.PodIPs, ip.IP)
	}
	return info
}

func planVolumes(mounted map[string]volumes.Mounted) map[string]podplan.Volume {
	out := make(map[string]podplan.Volume, len(mounted))
	for name, m := range mounted {
		volume := podplan.Volume{Path: m.Path, Readonly: m.Readonly, File: m.File, NoExec: m.NoExec, NoSuid: m.NoSuid, NoDev: m.NoDev, Relabel: m.Relabel}
		if m.Device != nil {
			device := podplan.BlockDevice(*m.Device)
			volume.Device = &device
		}
		out[name] = volume
	}
	return out
}

func (w *worker) volumeEvents(pod *corev1.Pod, err error) {
	for reason, message := range volumes.Events(err) {
		w.event(pod, nil, corev1.EventTypeWarning, reason, message)
	}
}

// volumesPatience is how long a kubelet waits for a pod's volumes before it says so
// (podAttachAndMountTimeout), and again before it says it once more.
const volumesPatience = 2*time.Minute + 3*time.Second

// lateVolumes says which volumes the pod has been waiting for, whatever else was said of them.
func (w *worker) lateVolumes(pod *corev1.Pod, vols *op) {
	if vols.done {
		w.volumesDue = time.Time{}
		return
	}
	if w.volumesDue.IsZero() {
		w.volumesDue = time.Now().Add(volumesPatience)
	}
	if wait := time.Until(w.volumesDue); wait > 0 {
		w.wakeAfter(wait)
		return
	}
	w.volumesDue = time.Now().Add(volumesPatience)
	w.wakeAfter(volumesPatience)
	if message := volumes.Late(pod, vols.err, context.DeadlineExceeded); message != "" {
		w.event(pod, nil, corev1.EventTypeWarning, "FailedMount", message)
	}
}

// rejectForVolumes ends a pod that was scheduled to a node whose disks' slots are all taken, so that
// its controller makes another one (KEP-4876).
func (w *worker) rejectForVolumes(pod *corev1.Pod, err error) {
	message := volumes.Rejection(pod, err)
	if message == "" || w.toEnd() {
		return
	}
	w.event(pod, nil, corev1.EventTypeWarning, reasonVolumeLimit, message)
	w.evict(evictRecord{podplan.Ending{Reason: reasonVolumeLimit, Message: "Pod was rejected: " + message}, evictionGrace})
}

// reasonVolumeLimit is a kubelet's.
const reasonVolumeLimit = "VolumeAttachmentLimitExceeded"

// metadataChanged re-renders volumes, and the environment of what has not been started
// (a subPath of it may have been refused), after the object or something that it refers to changed.
func (w *worker) metadataChanged() {
	w.outdate(envOps, opVolumesUpdate)
	w.mu.Lock()
	o := w.ops[opVolumes]
	prepared := o != nil && o.done
	if o != nil && o.running {
		o.outdated = true
	}
	w.mu.Unlock()
	if prepared && !w.released {
		w.updateVolumes()
	}
}

// retryUpdate renders volumes again, after a delay, that could not be.
func (w *worker) retryUpdate() {
	w.mu.Lock()
	o := w.ops[opVolumesUpdate]
	failed := o != nil && !o.running && o.err != nil
	w.mu.Unlock()
	if failed && !w.released {
		w.updateVolumes()
	}
}

func (w *worker) updateVolumes() {
	w.begin(opVolumesUpdate, time.Second, func(ctx context.Context) (any, error) {
		pod, _ := w.current()
		if err := w.p.deps.Volumes.Update(ctx, pod, w.volumeInfo(pod)); err != nil {
			w.log.Warn("Cannot update volumes", "err", err)
			return nil, err
		}
		return nil, nil
	})
}
