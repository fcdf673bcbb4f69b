package provider

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/diskuse"
	"github.com/vk-metal/vk-metal/internal/volumes"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

const (
	// storageEvery is a kubelet's interval: the kernel tells nobody of the size of a tree.
	storageEvery = 10 * time.Second
	// storageAge is how old figures may be for decisions. A pod that takes long to measure is measured
	// less often.
	storageAge = storageEvery / 2
	// evictionGrace is what a kubelet leaves to pods that it evicts at once.
	evictionGrace = time.Second
)

// limitStorage evicts pods that take more of the disk than they may, until ctx ends. Only pods
// with a limit are measured.
func (p *Provider) limitStorage(ctx context.Context) error {
	p.tellCounting()
	ticker := time.NewTicker(storageEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		for _, w := range p.all() {
			w.limitStorage(ctx)
		}
	}
}

// tellCounting says once how disk use becomes known.
func (p *Provider) tellCounting() {
	if err := diskuse.Tracks(p.deps.Layout.Lib); err != nil {
		p.log.Info("What pods take of the disk is measured file by file", "reason", err)
		return
	}
	p.log.Info("What pods with a user namespace take of the disk is counted by the file system, that of others is measured file by file")
}

// countLayers makes the directory of a container's writable layers, which the file system counts if
// it can; see volumes for whose.
func (w *worker) countLayers(pod *corev1.Pod, dir string) error {
	if !podplan.OwnUsers(pod) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); errors.Is(err, fs.ErrExist) {
		return nil // by an attempt before this
	} else if err != nil {
		return err
	}
	if err := diskuse.Track(dir); err != nil && !errors.Is(err, diskuse.ErrNoQuota) {
		w.log.Warn("Writable layers are not counted by their file system", "err", err)
	}
	return nil
}

// limitStorage looks at one pod.
func (w *worker) limitStorage(ctx context.Context) {
	pod, gone := w.current()
	if gone || isFinal(pod.Status.Phase) || !podplan.LimitsStorage(pod) {
		return
	}
	usage, err := w.storageUsage(ctx, pod)
	if err != nil {
		if ctx.Err() == nil {
			w.log.Warn("Cannot measure what a pod takes of the disk", "err", err)
		}
		return
	}
	if verdict := podplan.StorageVerdict(pod, usage); verdict != nil {
		w.log.Info("Pod takes more of the disk than it may", "message", verdict.Message)
		w.event(pod, nil, corev1.EventTypeWarning, verdict.Reason, verdict.Message)
		w.evict(evictRecord{*verdict, evictionGrace})
	}
}

// storageUsage measures all that containers can make grow: writable layers, logs, emptyDirs, and
// the files that are mounted into them.
func (w *worker) storageUsage(ctx context.Context, pod *corev1.Pod) (podplan.StorageUsage, error) {
	layout, uid := w.p.deps.Layout, string(w.uid)
	usage := podplan.StorageUsage{Containers: map[string]int64{}, Volumes: map[string]int64{}}
	for _, c := range podplan.Containers(pod) {
		for _, dir := range []string{
			layout.Layers(uid, c.Name), layout.ContainerLogs(pod.Namespace, pod.Name, uid, c.Name), filepath.Dir(w.terminationLog(c.Name, 0)),
		} {
			used, err := w.p.deps.Disk.Measure(ctx, dir, storageAge)
			if err != nil {
				return usage, err
			}
			usage.Containers[c.Name] += used.Bytes
			usage.Inodes += used.Inodes
		}
	}
	files, err := diskuse.Measure(ctx, filepath.Join(layout.PodLib(uid), dirEtc))
	if err != nil {
		return usage, err
	}
	usage.Files, usage.Inodes = files.Bytes, usage.Inodes+files.Inodes
	for _, v := range pod.Spec.Volumes {
		if v.EmptyDir == nil || v.EmptyDir.Medium != corev1.StorageMediumDefault {
			continue
		}
		used, err := w.p.deps.Disk.Measure(ctx, volumes.EmptyDir(layout, uid, v.Name), storageAge)
		if err != nil {
			return usage, err
		}
		usage.Volumes[v.Name] = used.Bytes
		usage.Inodes += used.Inodes
	}
	return usage, nil
}
