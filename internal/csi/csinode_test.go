package csi

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
)

func (w *world) csiNode() *storagev1.CSINode {
	w.t.Helper()
	info, err := w.client.StorageV1().CSINodes().Get(w.t.Context(), "n1", metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return info
}

// writes counts how often the CSINode was written.
func (w *world) writes() (count int) {
	for _, action := range w.client.Actions() {
		if action.GetResource().Resource == "csinodes" && slices.Contains([]string{"create", "update"}, action.GetVerb()) {
			count++
		}
	}
	return count
}

// TestCSINodeSaysWhatIsMigrated: a node without drivers has a CSINode, too; without its annotation
// the cluster does not attach volumes that were built into Kubernetes. One that another Node of the
// name has left is taken over before it is collected.
func TestCSINodeSaysWhatIsMigrated(t *testing.T) {
	left := &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{
		Name: "n1", Annotations: map[string]string{"mine": "kept", corev1.MigratedPluginsAnnotationKey: "kubernetes.io/none"},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "n1", UID: "a node before"}},
	}, Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{Name: "other", NodeID: "x"}}}}
	w := newWorld(t, newDriver(t), left)
	for range 2 {
		if err := w.m.introduceOnce(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	const want = "kubernetes.io/aws-ebs,kubernetes.io/azure-disk,kubernetes.io/azure-file,kubernetes.io/cinder,kubernetes.io/gce-pd,kubernetes.io/portworx-volume,kubernetes.io/vsphere-volume"
	info := w.csiNode()
	if got := info.Annotations; got[corev1.MigratedPluginsAnnotationKey] != want || got["mine"] != "kept" {
		t.Errorf("annotations %q", got)
	}
	if owners := info.OwnerReferences; len(owners) != 1 || owners[0].UID != "node-1" {
		t.Errorf("owners %+v", owners)
	}
	if len(info.Spec.Drivers) != 2 || w.writes() != 1 {
		t.Errorf("drivers %+v, written %d times", info.Spec.Drivers, w.writes())
	}
	if err := w.client.StorageV1().CSINodes().Delete(t.Context(), "n1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := w.m.introduceOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	if info := w.csiNode(); info.Annotations[corev1.MigratedPluginsAnnotationKey] != want || len(info.OwnerReferences) != 1 {
		t.Errorf("a new one: %+v", info)
	}
}

func TestRefreshes(t *testing.T) {
	start := time.Now()
	plan := refreshes{}
	for _, step := range []struct {
		at      time.Duration
		periods map[string]time.Duration
		due     []string
		wait    time.Duration
	}{
		{0, map[string]time.Duration{"never": 0}, nil, -1},
		{0, map[string]time.Duration{"a": 10 * time.Second, "b": 25 * time.Second}, nil, 10 * time.Second},
		{4 * time.Second, map[string]time.Duration{"a": 10 * time.Second, "b": 25 * time.Second}, nil, 6 * time.Second},
		{10 * time.Second, map[string]time.Duration{"a": 10 * time.Second, "b": 25 * time.Second}, []string{"a"}, 10 * time.Second},
		{20 * time.Second, map[string]time.Duration{"b": 25 * time.Second}, nil, 5 * time.Second},                         // a has gone
		{25 * time.Second, map[string]time.Duration{"a": 10 * time.Second, "b": 50 * time.Second}, nil, 10 * time.Second}, // b's period is another
		{40 * time.Second, map[string]time.Duration{"a": 10 * time.Second}, []string{"a"}, 10 * time.Second},
		{50 * time.Second, nil, nil, -1},
	} {
		due, wait := plan.next(start.Add(step.at), step.periods)
		if !slices.Equal(due, step.due) || wait != step.wait {
			t.Errorf("at %s: due %v, wait %s, want %v, %s", step.at, due, wait, step.due, step.wait)
		}
	}
}

// TestAllocatableIsKeptUpToDate: the object says how often; that it says so is seen, and what has not
// changed is not written.
func TestAllocatableIsKeptUpToDate(t *testing.T) {
	driver := newDriver(t)
	w := newWorld(t, driver, csiDriver(nil))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = w.m.Run(ctx) }()
	defer func() { cancel(); <-done }()
	driver.takeVolumes(5)
	object := csiDriver(func(spec *storagev1.CSIDriverSpec) { spec.NodeAllocatableUpdatePeriodSeconds = new(int64(1)) })
	if _, err := w.client.StorageV1().CSIDrivers().Update(t.Context(), object, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	until := func(what string, done func() bool) {
		t.Helper()
		err := wait.PollUntilContextTimeout(t.Context(), 20*time.Millisecond, time.Minute, true, func(context.Context) (bool, error) { return done(), nil })
		if err != nil {
			t.Fatalf("%s: %v; CSINode %+v", what, err, w.csiNode().Spec)
		}
	}
	until("five volumes", func() bool {
		have := w.csiNode().Spec.Drivers[0].Allocatable
		return have != nil && *have.Count == 5
	})
	driver.takeVolumes(0)
	until("as many as there are", func() bool { return w.csiNode().Spec.Drivers[0].Allocatable == nil })
	writes := w.writes()
	driver.take()
	until("it is asked again", func() bool { return slices.Contains(driver.take(), "info") })
	until("and again", func() bool { return slices.Contains(driver.take(), "info") })
	if again := w.writes(); again != writes {
		t.Errorf("the CSINode was written %d times for nothing", again-writes)
	}
}

// TestNodeThatHasTooManyVolumes: only a driver that asks for it has its pods sent away.
func TestNodeThatHasTooManyVolumes(t *testing.T) {
	for name, period := range map[string]*int64{"kept up to date": new(int64(600)), "not kept": nil} {
		t.Run(name, func(t *testing.T) {
			driver := newDriver(t)
			v := volumeOf("u1")
			s, err := v.source()
			if err != nil {
				t.Fatal(err)
			}
			failed := &storagev1.VolumeAttachment{
				ObjectMeta: metav1.ObjectMeta{Name: attachmentName(s, "n1")},
				Status:     storagev1.VolumeAttachmentStatus{AttachError: &storagev1.VolumeError{Message: "full", ErrorCode: new(int32(codes.ResourceExhausted))}},
			}
			w := newWorld(t, driver, failed, csiDriver(func(spec *storagev1.CSIDriverSpec) {
				spec.AttachRequired, spec.NodeAllocatableUpdatePeriodSeconds = new(true), period
			}))
			driver.takeVolumes(2)
			_, err = w.m.Publish(t.Context(), v)
			var why *NotAttachedError
			if !errors.As(err, &why) || why.Waiting || why.Reason != "full" || why.Exhausted != (period != nil) {
				t.Errorf("got %+v", err)
			}
			want := &storagev1.VolumeNodeResources{Count: new(int32(7))}
			if period != nil {
				want.Count = new(int32(2))
			}
			if got := w.csiNode().Spec.Drivers[0].Allocatable; !reflect.DeepEqual(got, want) {
				t.Errorf("allocatable %v, want %v", *got.Count, *want.Count)
			}
		})
	}
}
