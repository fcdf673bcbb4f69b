package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// loop attaches a new file of 4 MiB of the node to a loop device until the test ends; the rig
// sees to it if nobody else does.
func (e *env) loop(node, file string) (device string) {
	e.Helper()
	e.on(node, "truncate", "-s", "4M", file)
	device = strings.TrimSpace(e.on(node, "losetup", "--find", "--show", file))
	e.afterwards("detach "+device, func(ctx context.Context) error {
		_, err := e.machine(node).Run(ctx, "losetup", "--detach", device)
		return err
	})
	return device
}

// claim makes a volume and a claim that are bound to each other.
func (e *env) claim(name string, mode corev1.PersistentVolumeMode, source corev1.PersistentVolumeSource, node string) {
	e.Helper()
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("4Mi")}
	modes := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	volumes := e.c.Client.CoreV1().PersistentVolumes()
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: size, AccessModes: modes, VolumeMode: &mode, PersistentVolumeSource: source,
			ClaimRef: &corev1.ObjectReference{Namespace: e.ns, Name: name},
		},
	}
	if node != "" {
		volume.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
		}}}}
	}
	if _, err := volumes.Create(e.Context(), volume, metav1.CreateOptions{}); err != nil {
		e.Fatal(err)
	}
	e.afterwards("remove volume", func(ctx context.Context) error {
		return volumes.Delete(ctx, name, metav1.DeleteOptions{})
	})
	// The controller that binds looks again after a quarter of a minute at what it has not seen yet.
	e.eventually(time.Minute, func() string {
		now, err := volumes.Get(e.Context(), name, metav1.GetOptions{})
		if err != nil || now.Status.Phase != corev1.VolumeAvailable {
			return "the volume is not available"
		}
		return ""
	})
	claims := e.c.Client.CoreV1().PersistentVolumeClaims(e.ns)
	_, err := claims.Create(e.Context(), &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			VolumeName: name, AccessModes: modes, VolumeMode: &mode, StorageClassName: ptr.To(""),
			Resources: corev1.VolumeResourceRequirements{Requests: size},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		e.Fatal(err)
	}
	// A namespace that goes waits long for claims, whose pods have to be gone first.
	e.afterwards("remove claim", func(ctx context.Context) error {
		err := claims.Delete(ctx, name, metav1.DeleteOptions{})
		for err == nil {
			if _, err = claims.Get(ctx, name, metav1.GetOptions{}); err == nil {
				time.Sleep(50 * time.Millisecond)
			}
		}
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
	e.eventually(time.Minute, func() string {
		claim, err := claims.Get(e.Context(), name, metav1.GetOptions{})
		if err != nil || claim.Status.Phase != corev1.ClaimBound {
			return "the claim is not bound"
		}
		return ""
	})
}

// withClaim gives the pod a volume of a claim.
func withClaim(pod *corev1.Pod, volume, claim string, readOnly bool) *corev1.Pod {
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim, ReadOnly: readOnly},
	}})
	return pod
}

// onDevice gives the pod's container a claim as a device.
func onDevice(pod *corev1.Pod, claim, path string, readOnly bool) *corev1.Pod {
	main := &pod.Spec.Containers[0]
	main.VolumeDevices = append(main.VolumeDevices, corev1.VolumeDevice{Name: claim, DevicePath: path})
	return withClaim(pod, claim, claim, readOnly)
}

// TestRawBlock: a container has a disk of the node as a device, that one alone, as its claim
// says, and nothing of it stays.
func TestRawBlock(t *testing.T) {
	e := setup(t)
	node := e.c.Machines()[0].Name
	file := "/srv/" + e.ns
	device, other := e.loop(node, file), e.loop(node, file+"-other")
	name := "block-" + e.ns
	e.claim(name, corev1.PersistentVolumeBlock, corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: device}}, node)
	const path = "/dev/disks/data"
	e.create(onDevice(e.busybox("writer", "printf hello | dd of="+path+" conv=notrunc,fsync && sleep 3600"), name, path, false))
	pod := e.waitPod("writer", podTimeout, running)
	if pod.Spec.NodeName != node {
		t.Errorf("it was scheduled to %s", pod.Spec.NodeName)
	}
	const what = "%F %t:%T %a %u:%g"
	want := e.on(node, "stat", "-c", what, device)
	if got := e.exec(pod, "stat", "-c", what, path); strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("in the container it is %q, on the node %q", got, want)
	}
	if got := e.exec(pod, "head", "-c", "5", path); got != "hello" {
		t.Errorf("the device has %q", got)
	}
	minor := e.on(node, "stat", "-c", "%T", other)
	foreign := fmt.Sprintf("mknod /tmp/other b 7 $((0x%s)) && head -c 1 /tmp/other 2>&1", strings.TrimSpace(minor))
	if got := e.exec(pod, "sh", "-c", foreign+"; true"); !strings.Contains(got, "Operation not permitted") {
		t.Errorf("another device of the node can be read: %q", got)
	}
	e.remove("writer", podTimeout)
	e.readsOnly(onDevice(e.busybox("reader", "sleep 3600"), name, path, true), path)
	if data, err := os.ReadFile(filepath.Join(e.machine(node).Root(), file)); err != nil || !strings.HasPrefix(string(data), "hello") {
		t.Errorf("the disk has %.10q, %v", data, err)
	}
	e.on(node, "test", "!", "-e", "/var/lib/vk-metal/pods/"+string(pod.UID))
}

// readsOnly runs the pod, in which the device can be read and not written.
func (e *env) readsOnly(pod *corev1.Pod, device string) {
	e.Helper()
	e.create(pod)
	pod = e.waitPod(pod.Name, podTimeout, running)
	got := e.exec(pod, "sh", "-c", "head -c 5 "+device+"; { echo no >"+device+"; } 2>&1; true")
	if !strings.HasPrefix(got, "hello") || !strings.Contains(got, "Operation not permitted") {
		e.Errorf("a device that is only to be read: %q", got)
	}
	e.remove(pod.Name, 30*time.Second)
}
