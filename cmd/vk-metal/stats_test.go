package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/internal/csi"
	"github.com/vk-metal/vk-metal/internal/diskuse"
	"github.com/vk-metal/vk-metal/internal/nodestats"
	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/internal/volumes"
)

type fakeUsages []volumes.Usage

func (f fakeUsages) Usage(context.Context, *corev1.Pod) []volumes.Usage { return f }

// TestDiskOfAPod: layers and logs of all containers and the volumes on the node's disk are the pod's
// ephemeral storage, others' volumes are not. Nobody waits for a measurement.
func TestDiskOfAPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		layout := paths.Layout{Lib: filepath.Join(dir, "lib"), Log: filepath.Join(dir, "log")}
		write := func(path string) {
			t.Helper()
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(filepath.Join(layout.Layers("u", "runs"), "file"))
		write(filepath.Join(layout.ContainerLogs("ns", "p", "u", "runs"), "0.log"))
		write(filepath.Join(layout.ContainerLogs("ns", "p", "u", "init"), "0.log"))
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u"}, Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Name: "init"}}, Containers: []corev1.Container{{Name: "runs"}},
			Volumes: []corev1.Volume{
				{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
				{Name: "memory", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
				{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}},
				{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{}}},
			},
		}}
		var list fakeUsages
		for i, name := range []string{"scratch", "memory", "config", "data"} {
			list = append(list, volumes.Usage{Volume: name, Time: time.Now(), Stats: csi.Stats{InodesUsed: []int64{100, 1000, 10000, 100000}[i]}})
		}
		f := figures{volumes: list, layout: layout, disk: &diskuse.Meter{}}
		describe := func() nodestats.Pod {
			into := nodestats.Pod{UID: "u", Containers: []nodestats.Container{{Name: "runs"}}}
			f.addDisks(t.Context(), &into, pod)
			return into
		}
		if first := describe(); first.Containers[0].Rootfs != nil || first.Ephemeral == nil || first.Ephemeral.Inodes != 10100 || len(first.Volumes) != 4 {
			t.Errorf("before anything was measured: %+v", first)
		}
		synctest.Wait()
		got := describe()
		c := got.Containers[0]
		if c.Rootfs == nil || c.Rootfs.Inodes != 2 || c.Logs == nil || c.Logs.Inodes != 2 || got.Ephemeral.Inodes != 10100+2+2+2 {
			t.Errorf("got rootfs %+v, logs %+v, all %+v", c.Rootfs, c.Logs, got.Ephemeral)
		}
	})
}
