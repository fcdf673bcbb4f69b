package volumes

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestUsageOfOwnVolumes: what this node makes is measured by its files, up to the size of where
// they lie; a directory of the host is not.
func TestUsageOfOwnVolumes(t *testing.T) {
	m, src := testManager(t)
	src.cms["c"] = &corev1.ConfigMap{Data: map[string]string{"key": "value"}}
	pod := testPod(
		vol("disk", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}),
		vol("host", corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: t.TempDir()}}),
		vol("config", corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}}}),
	)
	got := prepare(t, m, pod, PodInfo{})
	if err := os.WriteFile(filepath.Join(got["disk"].Path, "file"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	usage := m.Usage(t.Context(), pod)
	for deadline := time.Now().Add(time.Minute); len(usage) == 0 && time.Now().Before(deadline); { // it waits a little only
		usage = m.Usage(t.Context(), pod)
	}
	var names []string
	for _, u := range usage {
		names = append(names, u.Volume)
		if u.Capacity <= u.Used || u.Available <= 0 || u.Inodes <= u.InodesUsed || u.InodesUsed == 0 || u.Used == 0 || u.Time.IsZero() {
			t.Errorf("figures %+v", u)
		}
	}
	if !slices.Equal(names, []string{"disk", "config"}) {
		t.Fatalf("measured %v", names)
	}
	if used := usage[0]; used.Used < 1<<20 || used.Used > 2<<20 || used.InodesUsed != 2 {
		t.Errorf("the emptyDir takes %+v", used)
	}
}

// TestUsageIsTakenBesideTheCaller: who asks does not wait for long, and is not the reason for a
// second measurement; figures are a minute old at most, unless they take long to get.
func TestUsageIsTakenBesideTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u usages
		count, takes := 0, time.Duration(0)
		measure := func() []Usage {
			count++
			n := count
			time.Sleep(takes)
			return []Usage{{Volume: string(rune('a' + n - 1))}}
		}
		ask := func(want string, measured int) {
			t.Helper()
			list, _ := u.get("uid", measure)
			synctest.Wait()
			got := ""
			if len(list) > 0 {
				got = list[0].Volume
			}
			if got != want || count != measured {
				t.Fatalf("figures %q of %d measurements, want %q of %d", got, count, want, measured)
			}
		}
		ask("", 1)
		ask("a", 1)
		time.Sleep(usageAge - time.Second)
		ask("a", 1)
		takes = 10 * time.Second
		time.Sleep(2 * time.Second)
		ask("a", 2)
		time.Sleep(takes)
		synctest.Wait()
		ask("b", 2)
		time.Sleep(usageAge)
		ask("b", 2) // took so long that it waits longer
		time.Sleep(usageShare * takes)
		ask("b", 3)
		u.forget("uid")
		time.Sleep(takes)
		synctest.Wait()
		takes = 0
		ask("", 4)
	})
}

// TestUsageDoesNotHang: a server that does not answer costs its figures.
func TestUsageDoesNotHang(t *testing.T) {
	m, _ := testManager(t)
	stuck := make(chan struct{})
	driver := &fakeCSI{dir: t.TempDir(), stats: func() { <-stuck }}
	m.opts.CSI = driver
	pod := testPod(vol("scratch", corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "d"}}))
	prepare(t, m, pod, PodInfo{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if list := m.Usage(ctx, pod); len(list) != 0 {
		t.Errorf("figures %+v", list)
	}
	_, busy := m.usages.get(string(pod.UID), func() []Usage { t.Error("measured twice"); return nil })
	close(stuck)
	<-busy
	if list := m.Usage(ctx, pod); len(list) != 1 || list[0].Capacity != 9 {
		t.Errorf("figures %+v", list)
	}
}
