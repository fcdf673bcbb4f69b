package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// attachments are the cluster's of the test driver, by volume.
func (e *env) attachments() map[string]storagev1.VolumeAttachment {
	e.Helper()
	list, err := e.c.Client.StorageV1().VolumeAttachments().List(e.Context(), metav1.ListOptions{})
	if err != nil {
		e.Fatal(err)
	}
	found := map[string]storagev1.VolumeAttachment{}
	for _, a := range list.Items {
		if a.Spec.Attacher == testDriver && a.Spec.Source.PersistentVolumeName != nil {
			found[*a.Spec.Source.PersistentVolumeName] = a
		}
	}
	return found
}

// attachVolumes does a driver's controller's part: it says that what the cluster wants is attached.
func (e *env) attachVolumes(volumes ...string) {
	e.Helper()
	api := e.c.Client.StorageV1().VolumeAttachments()
	for _, name := range volumes {
		var attachment storagev1.VolumeAttachment
		e.eventually(time.Minute, func() string {
			found, ok := e.attachments()[name]
			attachment = found
			if !ok {
				return "the cluster does not attach " + name
			}
			return ""
		})
		attachment.Status = storagev1.VolumeAttachmentStatus{Attached: true, AttachmentMetadata: map[string]string{"test": "attached-" + name}}
		if _, err := api.UpdateStatus(e.Context(), &attachment, metav1.UpdateOptions{}); err != nil {
			e.Fatal(err)
		}
	}
}

// grow does a driver's controller's part: the volume is larger, and its file system is not yet.
func (e *env) grow(name, size string) {
	e.Helper()
	core := e.c.Client.CoreV1()
	patch := fmt.Appendf(nil, `{"spec":{"capacity":{"storage":%q}}}`, size)
	if _, err := core.PersistentVolumes().Patch(e.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		e.Fatal(err)
	}
	patch = []byte(`{"status":{"conditions":[{"type":"FileSystemResizePending","status":"True"}]}}`)
	_, err := core.PersistentVolumeClaims(e.ns).Patch(e.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		e.Fatal(err)
	}
}

// TestAttachedVolumesOfDrivers: volumes that the cluster attaches, one of them a device, come
// once they are; the driver gets a token for the pod; a claim that grows is grown while it is in
// use; the pod's object goes after its volumes, and then their attachments.
func TestAttachedVolumesOfDrivers(t *testing.T) {
	e := setupMore(t)
	node := e.c.Rig.Machines()[0].Name
	e.driver(node, func(s *storagev1.CSIDriverSpec) {
		s.AttachRequired, s.RequiresRepublish = ptr.To(true), ptr.To(true)
		s.TokenRequests = []storagev1.TokenRequest{{Audience: "test.example.com"}}
	})
	files, disk := "files-"+e.ns, "disk-"+e.ns
	e.claim(files, corev1.PersistentVolumeFilesystem, ofDriver(files), "")
	e.claim(disk, corev1.PersistentVolumeBlock, ofDriver(disk), "")
	pod := onDevice(withClaim(e.busybox("db", "sleep 3600"), "files", files, false), disk, "/dev/data", false)
	pod.Spec.NodeName = node
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "files", MountPath: "/data"}}
	e.create(pod)
	e.eventually(time.Minute, func() string {
		n, err := e.c.Client.CoreV1().Nodes().Get(e.Context(), node, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		for _, name := range []string{files, disk} {
			if !slices.Contains(n.Status.VolumesInUse, corev1.UniqueVolumeName("kubernetes.io/csi/"+testDriver+"^"+name)) {
				return fmt.Sprintf("in use are %v", n.Status.VolumesInUse)
			}
		}
		return ""
	})
	if now := e.pod("db"); now.Status.Phase != corev1.PodPending {
		t.Errorf("before its volumes are attached it is %s", now.Status.Phase)
	}
	e.attachVolumes(files, disk)
	pod = e.waitPod("db", podTimeout, running)
	if got := e.exec(pod, "cat", "/data/context"); got != "attached-"+files {
		t.Errorf("the driver was told %q", got)
	}
	e.hasToken(pod, "/data/tokens")
	if got := e.exec(pod, "sh", "-c", "printf hello | dd of=/dev/data conv=notrunc,fsync 2>/dev/null; head -c 5 /dev/data"); got != "hello" {
		t.Errorf("the device has %q", got)
	}

	e.grow(files, "8Mi")
	e.eventually(3*time.Minute, func() string {
		claim, err := e.c.Client.CoreV1().PersistentVolumeClaims(e.ns).Get(e.Context(), files, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if has := claim.Status.Capacity[corev1.ResourceStorage]; has.Cmp(resource.MustParse("8Mi")) != 0 || len(claim.Status.Conditions) > 0 {
			return fmt.Sprintf("the claim is %+v", claim.Status)
		}
		return ""
	})
	if got := e.exec(pod, "cat", "/data/size"); got != "8388608" {
		t.Errorf("the driver grew the volume to %q", got)
	}

	e.remove("db", time.Minute)
	mounts := e.on(node, "cat", "/proc/self/mountinfo")
	if strings.Contains(mounts, string(pod.UID)) || strings.Contains(mounts, "globalmount") {
		t.Error("the object went before its volumes")
	}
	e.eventually(2*time.Minute, func() string {
		if left := e.attachments(); len(left) > 0 {
			return fmt.Sprintf("attached are %v", left)
		}
		return ""
	})
	if got := e.on(node, "head", "-c", "5", filepath.Join(driverData, disk+".img")); got != "hello" {
		t.Errorf("the disk has %q", got)
	}
	if left := e.on(node, "losetup", "--associated", filepath.Join(driverData, disk+".img")); left != "" {
		t.Errorf("the device is still staged: %s", left)
	}
}

// hasToken says that a file has a token for the driver that is bound to the pod.
func (e *env) hasToken(pod *corev1.Pod, file string) {
	e.Helper()
	var tokens map[string]struct{ Token string }
	if err := json.Unmarshal([]byte(e.exec(pod, "cat", file)), &tokens); err != nil {
		e.Fatal(err)
	}
	parts := strings.Split(tokens["test.example.com"].Token, ".")
	if len(parts) != 3 {
		e.Fatalf("tokens are %v", tokens)
	}
	var claims struct {
		Aud        []string
		Kubernetes struct{ Pod struct{ UID string } } `json:"kubernetes.io"`
	}
	data, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err == nil {
		err = json.Unmarshal(data, &claims)
	}
	if err != nil || !slices.Equal(claims.Aud, []string{"test.example.com"}) || claims.Kubernetes.Pod.UID != string(pod.UID) {
		e.Errorf("the token says %s, %v", data, err)
	}
}
