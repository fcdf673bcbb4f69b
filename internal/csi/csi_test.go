package csi

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"go.uber.org/goleak"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/internal/testapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const driverName = "csi.example.com"

type world struct {
	t      *testing.T
	client *fake.Clientset
	layout paths.Layout
	driver *testDriver
	m      *Manager
}

// newWorld has a registered driver; objects are what the API has besides the Node.
func newWorld(t *testing.T, driver *testDriver, objects ...runtime.Object) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, driver: driver, layout: paths.Layout{Run: filepath.Join(dir, "run"), Kubelet: filepath.Join(dir, "kubelet")}}
	w.client = testapi.NewClientset(append(objects, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "node-1"}})...)
	w.restart()
	return w
}

// restart is what happens when the agent starts anew.
func (w *world) restart() {
	w.t.Helper()
	if w.m != nil {
		w.m.Close()
	}
	m, err := New(Options{NodeName: "n1", Layout: w.layout, Client: w.client, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.t.Fatal(err)
	}
	w.m = m
	w.t.Cleanup(m.Close)
	if err := m.Register(w.t.Context(), driverName, w.driver.socket, []string{"1.0.0"}); err != nil {
		w.t.Fatal(err)
	}
	w.driver.take()
}

func (w *world) publish(v Volume) Published {
	w.t.Helper()
	published, err := w.m.Publish(w.t.Context(), v)
	if err != nil {
		w.t.Fatal(err)
	}
	return published
}

func (w *world) unpublish(v Volume) {
	w.t.Helper()
	if err := w.m.Unpublish(w.t.Context(), v); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) calls(want ...string) {
	w.t.Helper()
	if got := w.driver.take(); !slices.Equal(got, want) {
		w.t.Errorf("calls %q, want %q", got, want)
	}
}

func csiDriver(change func(*storagev1.CSIDriverSpec)) *storagev1.CSIDriver {
	d := &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: driverName}, Spec: storagev1.CSIDriverSpec{AttachRequired: new(false)}}
	if change != nil {
		change(&d.Spec)
	}
	return d
}

func pod(uid string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: types.UID(uid)}, Spec: corev1.PodSpec{ServiceAccountName: "sa"}}
}

func pv() *corev1.PersistentVolume {
	return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv1"}, Spec: corev1.PersistentVolumeSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, MountOptions: []string{"noatime"},
		Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("2Gi")},
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
			Driver: driverName, VolumeHandle: "vol-1", FSType: "ext4", VolumeAttributes: map[string]string{"a": "b"},
			NodePublishSecretRef: &corev1.SecretReference{Namespace: "vault", Name: "s"},
		}},
	}}
}

func secret() *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "vault", Name: "s"}, Data: map[string][]byte{"key": []byte("value")}}
}

func volumeOf(uid string) Volume { return Volume{Pod: pod(uid), Name: "pv1", PV: pv(), Claim: "data"} }

func TestDriversAreAnnounced(t *testing.T) {
	w := newWorld(t, newDriver(t))
	node, err := w.client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if node.Annotations[nodeIDs] != `{"csi.example.com":"id-of-n1"}` || node.Labels["example.com/rack"] != "r1" {
		t.Errorf("node: %v %v", node.Annotations, node.Labels)
	}
	info, err := w.client.StorageV1().CSINodes().Get(t.Context(), "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := []storagev1.CSINodeDriver{{Name: driverName, NodeID: "id-of-n1", TopologyKeys: []string{"example.com/rack"}, Allocatable: &storagev1.VolumeNodeResources{Count: new(int32(7))}}}
	if !reflect.DeepEqual(info.Spec.Drivers, want) || len(info.OwnerReferences) != 1 || info.OwnerReferences[0].UID != "node-1" {
		t.Errorf("CSINode: %+v %+v", info.Spec.Drivers, info.OwnerReferences)
	}
	w.restart() // again: no second entry
	w.m.Deregister(driverName, "another socket")
	if got := w.m.Drivers(); len(got) != 1 {
		t.Errorf("a driver went with another one's socket: %v", got)
	}
	w.m.Deregister(driverName, w.driver.socket)
	info, err = w.client.StorageV1().CSINodes().Get(t.Context(), "n1", metav1.GetOptions{})
	if err != nil || len(info.Spec.Drivers) != 0 || len(w.m.Drivers()) != 0 {
		t.Errorf("a driver that has gone: %v %v", info, err)
	}
	if err := w.m.Validate(driverName, "", []string{"0.3.0", "2.0.0"}); err == nil {
		t.Error("a driver without CSI 1.x is taken")
	}
}

func TestVolumeOfTwoPods(t *testing.T) {
	w := newWorld(t, newDriver(t, canStage), csiDriver(nil), secret())
	a, b := volumeOf("uid-a"), volumeOf("uid-b")
	a.FSGroup = new(int64(5))
	got := w.publish(a)
	want := filepath.Join(w.layout.Kubelet, "pods/uid-a/volumes/kubernetes.io~csi/pv1/mount")
	if got != (Published{Path: want, Group: true}) {
		t.Errorf("published %+v, want %s", got, want)
	}
	request := w.driver.published[0]
	staging := fmt.Sprintf("%s/plugins/kubernetes.io/csi/%s/%x/globalmount", w.layout.Kubelet, driverName, sha256.Sum256([]byte("vol-1")))
	if request.StagingTargetPath != staging {
		t.Errorf("staged at %s, want %s", request.StagingTargetPath, staging)
	}
	mount := request.VolumeCapability.GetMount()
	if request.Secrets["key"] != "value" || request.VolumeContext["a"] != "b" || mount.FsType != "ext4" || !slices.Equal(mount.MountFlags, []string{"noatime"}) ||
		request.VolumeCapability.AccessMode.Mode != csispec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER {
		t.Errorf("asked for %v", request)
	}
	if err := os.WriteFile(filepath.Join(got.Path, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.calls("stage vol-1", "publish vol-1")
	w.publish(a)
	w.calls()
	w.publish(b)
	w.calls("publish vol-1")

	w.restart()
	w.publish(b) // as it was
	w.calls()
	// The agent was away when the pod went: of it there is the UID and the record.
	w.unpublish(Volume{Pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "uid-a"}}, Name: "pv1", PV: pv()})
	w.calls("unpublish vol-1")
	w.driver.fail["unstage"] = errors.New("busy")
	if err := w.m.Unpublish(t.Context(), b); err == nil {
		t.Error("a failure is passed over")
	}
	w.unpublish(b)
	w.calls("unpublish vol-1", "unstage vol-1", "unpublish vol-1", "unstage vol-1")
	w.unpublish(b)
	w.calls()
	w.nothingLeft()
	if _, err := os.Stat(filepath.Join(w.driver.data, "vol-1", "file")); err != nil {
		t.Error("data went with the pod:", err)
	}
}

// nothingLeft looks for files below the kubelet's directory.
func (w *world) nothingLeft() {
	w.t.Helper()
	for _, dir := range []string{w.layout.Kubelet, w.layout.Run} {
		_ = filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
			if err == nil && !entry.IsDir() || strings.HasSuffix(path, "/mount") || strings.HasSuffix(path, "/globalmount") {
				w.t.Errorf("%s is left", path)
			}
			return nil
		})
	}
}

func TestFailedPublicationsAreRepeated(t *testing.T) {
	w := newWorld(t, newDriver(t, canStage), csiDriver(nil), secret())
	v := volumeOf("uid-a")
	for _, method := range []string{"stage", "publish"} {
		w.driver.fail[method] = errors.New("not now")
		_, err := w.m.Publish(t.Context(), v)
		var staging *StageError
		if err == nil || errors.As(err, &staging) != (method == "stage") {
			t.Errorf("%s fails: %v", method, err)
		}
	}
	w.restart()
	w.driver.staged = nil
	if err := unbind(w.m.stagingPath("pv1", mustSource(t, v))); err != nil { // a restage over it would be a second mount
		t.Fatal(err)
	}
	w.publish(v)
	w.unpublish(v)
	w.nothingLeft()
}

func mustSource(t *testing.T, v Volume) source {
	t.Helper()
	s, err := v.source()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestUnknownDriver(t *testing.T) {
	w := newWorld(t, newDriver(t), csiDriver(nil))
	v := volumeOf("uid-a")
	v.PV.Spec.CSI.Driver = "other"
	if _, err := w.m.Publish(t.Context(), v); err == nil || !strings.Contains(err.Error(), "driver name other not found in the list of registered CSI drivers") {
		t.Errorf("got %v", err)
	}
	if err := w.m.Unpublish(t.Context(), v); err != nil {
		t.Errorf("a volume that was never published needs no driver: %v", err)
	}
	v.PV.Spec.CSI.Driver = "../../etc"
	if _, err := w.m.Publish(t.Context(), v); err == nil {
		t.Error("a driver's name leads out of its directory")
	}
}

func TestVolumesAreAttachedFirst(t *testing.T) {
	w := newWorld(t, newDriver(t), csiDriver(func(s *storagev1.CSIDriverSpec) { s.AttachRequired = nil }), secret())
	v := volumeOf("uid-a")
	_, err := w.m.Publish(t.Context(), v)
	var waiting *NotAttachedError
	if !errors.As(err, &waiting) || !waiting.Waiting {
		t.Fatalf("without an attachment: %v", err)
	}
	forbidden := true
	w.client.PrependReactor("get", "volumeattachments", func(clienttesting.Action) (bool, runtime.Object, error) {
		return forbidden, nil, apierrors.NewForbidden(storagev1.Resource("volumeattachments"), "csi-x", errors.New("no relationship found between node and this object"))
	})
	if _, err := w.m.Publish(t.Context(), v); !errors.As(err, &waiting) || !waiting.Waiting {
		t.Fatalf("before the node may see an attachment: %v", err)
	}
	forbidden = false
	w.calls()
	inUse := []corev1.UniqueVolumeName{"kubernetes.io/csi/csi.example.com^vol-1"}
	if got := w.m.InUse(); !slices.Equal(got, inUse) {
		t.Errorf("in use: %v", got)
	}
	attachment := &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: attachmentName(mustSource(t, v), "n1")}}
	attachment.Status.AttachError = &storagev1.VolumeError{Message: "no such disk"}
	api := w.client.StorageV1().VolumeAttachments()
	if _, err := api.Create(t.Context(), attachment, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.m.Publish(t.Context(), v); !errors.As(err, &waiting) || waiting.Waiting || waiting.Reason != "no such disk" {
		t.Errorf("an attachment that failed: %v", err)
	}
	attachment.Status = storagev1.VolumeAttachmentStatus{Attached: true, AttachmentMetadata: map[string]string{"device": "/dev/sdx"}}
	if _, err := api.Update(t.Context(), attachment, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.publish(v)
	if got := w.driver.published[0].PublishContext["device"]; got != "/dev/sdx" {
		t.Errorf("the driver was told %q", got)
	}
	w.restart()
	if got := w.m.InUse(); !slices.Equal(got, inUse) {
		t.Errorf("in use for the next agent: %v", got)
	}
	w.unpublish(v)
	if got := w.m.InUse(); len(got) != 0 {
		t.Errorf("in use after the end: %v", got)
	}
}

func TestInlineVolume(t *testing.T) {
	w := newWorld(t, newDriver(t, canStage))
	v := Volume{Pod: pod("uid-a"), Name: "scratch", Inline: &corev1.CSIVolumeSource{Driver: driverName, ReadOnly: new(true)}}
	if _, err := w.m.Publish(t.Context(), v); err == nil || !strings.Contains(err.Error(), "no CSIDriver object") {
		t.Errorf("without a CSIDriver: %v", err)
	}
	object := csiDriver(func(s *storagev1.CSIDriverSpec) {
		s.VolumeLifecycleModes = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecycleEphemeral}
		s.PodInfoOnMount, s.RequiresRepublish = new(true), new(true)
		s.TokenRequests = []storagev1.TokenRequest{{Audience: "vault"}}
	})
	if _, err := w.client.StorageV1().CSIDrivers().Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.client.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		request := a.(clienttesting.CreateAction).GetObject().(*authv1.TokenRequest)
		request.Status.Token = "token-for-" + request.Spec.Audiences[0] + "-" + string(request.Spec.BoundObjectRef.UID)
		return true, request, nil
	})
	w.publish(v)
	request := w.driver.published[0]
	c := request.VolumeContext
	if !request.Readonly || c["csi.storage.k8s.io/pod.uid"] != "uid-a" || c["csi.storage.k8s.io/ephemeral"] != "true" ||
		c["csi.storage.k8s.io/serviceAccount.name"] != "sa" || !strings.Contains(c[tokensAttribute], "token-for-vault-uid-a") || request.StagingTargetPath != "" {
		t.Errorf("asked for %v", request)
	}
	w.driver.take()
	w.m.tend(t.Context())
	w.calls("publish " + request.VolumeId)
	w.unpublish(v)
	w.calls("unpublish " + request.VolumeId)
	w.m.tend(t.Context())
	w.calls()
	w.nothingLeft()
}

func TestVolumesGrow(t *testing.T) {
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data"}}
	claim.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	w := newWorld(t, newDriver(t, canExpand, canStats), csiDriver(nil), secret(), claim, pv())
	v := volumeOf("uid-a")
	v.PV.Spec.CSI.NodeExpandSecretRef = &corev1.SecretReference{Namespace: "vault", Name: "s"}
	w.publish(v)
	w.calls("publish vol-1")
	claim.Status.Conditions = []corev1.PersistentVolumeClaimCondition{{Type: corev1.PersistentVolumeClaimFileSystemResizePending, Status: corev1.ConditionTrue}}
	if _, err := w.client.CoreV1().PersistentVolumeClaims("shop").Update(t.Context(), claim, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.m.tend(t.Context())
	w.calls("expand 2147483648")
	if got := w.driver.expanded[0].Secrets["key"]; got != "value" {
		t.Errorf("the driver has the secret %q", got)
	}
	now, err := w.client.CoreV1().PersistentVolumeClaims("shop").Get(t.Context(), "data", metav1.GetOptions{})
	if err != nil || now.Status.Capacity.Storage().Value() != 2<<30 || len(now.Status.Conditions) != 0 {
		t.Errorf("the claim says %+v %v", now.Status, err)
	}
	w.m.tend(t.Context())
	w.calls()
	stats, err := w.m.Stats(t.Context(), v)
	if err != nil || *stats != (Stats{Capacity: 100, Used: 40, Available: 60, Inodes: 10, InodesUsed: 1, InodesFree: 9}) {
		t.Errorf("stats %+v %v", stats, err)
	}
	w.unpublish(v)
}

func TestRunEndsWithItsContext(t *testing.T) {
	w := newWorld(t, newDriver(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.m.Run(ctx); err != nil {
		t.Error(err)
	}
}
