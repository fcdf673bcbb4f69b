package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

const draDriver = "dra.test.example.com"

// deviceClass makes the driver's class and the devices that it has on a node.
func (e *env) deviceClass(node string, devices int) {
	e.Helper()
	api := e.c.Client.ResourceV1()
	class := &resourceapi.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: draDriver}, Spec: resourceapi.DeviceClassSpec{
		Selectors: []resourceapi.DeviceSelector{{CEL: &resourceapi.CELDeviceSelector{Expression: fmt.Sprintf("device.driver == %q", draDriver)}}},
	}}
	slice := &resourceapi.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: node + "-" + draDriver}, Spec: resourceapi.ResourceSliceSpec{
		Driver: draDriver, NodeName: ptr.To(node), Pool: resourceapi.ResourcePool{Name: node, ResourceSliceCount: 1},
	}}
	for i := range devices {
		slice.Spec.Devices = append(slice.Spec.Devices, resourceapi.Device{Name: fmt.Sprintf("device-%d", i)})
	}
	if _, err := api.DeviceClasses().Create(e.Context(), class, metav1.CreateOptions{}); err != nil {
		e.Fatal(err)
	}
	e.afterwards("remove DeviceClass", func(ctx context.Context) error {
		return api.DeviceClasses().Delete(ctx, class.Name, metav1.DeleteOptions{})
	})
	if _, err := api.ResourceSlices().Create(e.Context(), slice, metav1.CreateOptions{}); err != nil {
		e.Fatal(err)
	}
}

// withClaim is a pod whose only container has a device by a template of claims.
func (e *env) withClaim(name, template string) *corev1.Pod {
	pod := e.busybox(name, "echo claim $DRA_CLAIM; exec sleep 3600")
	pod.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "device", ResourceClaimTemplateName: &template}}
	pod.Spec.Containers[0].Resources.Claims = []corev1.ResourceClaim{{Name: "device"}}
	return pod
}

// TestResourceClaims: a claim's device is made ready by its driver, is in the container, waits
// for a driver that is away, outlives the agent, and is given back with the pod; slices of a
// driver that is gone go.
func TestResourceClaims(t *testing.T) {
	e := setupMore(t)
	node := e.c.Rig.Machines()[0].Name
	e.on(node, "mkdir", "-p", cdiSpecs)
	e.deviceClass(node, 2)
	template := &resourceapi.ResourceClaimTemplate{ObjectMeta: metav1.ObjectMeta{Name: "one"}, Spec: resourceapi.ResourceClaimTemplateSpec{
		Spec: resourceapi.ResourceClaimSpec{Devices: resourceapi.DeviceClaim{Requests: []resourceapi.DeviceRequest{{
			Name: "any", Exactly: &resourceapi.ExactDeviceRequest{DeviceClassName: draDriver},
		}}}},
	}}
	if _, err := e.c.Client.ResourceV1().ResourceClaimTemplates(e.ns).Create(e.Context(), template, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	first := e.create(e.withClaim("first", template.Name))
	e.waitEvent(first, "FailedPrepareDynamicResources") // its driver is not there yet
	e.plugin(node, "test-dra", "dra", draDriver, cdiSpecs)
	first = e.waitPod("first", podTimeout, running)
	claim := *first.Status.ResourceClaimStatuses[0].ResourceClaimName
	e.waitLog("first", "claim "+claim+"\n")
	e.on(node, "systemctl", "restart", "vk-metal.service")
	e.create(e.withClaim("second", template.Name))
	e.waitPod("second", podTimeout, running)
	e.remove("first", time.Minute)
	e.remove("second", time.Minute)
	if specs := e.on(node, "sh", "-c", "ls "+cdiSpecs+" | grep "+draDriver+" || true"); specs != "" {
		t.Errorf("specifications of claims that were given back: %s", specs)
	}
	if said := e.on(node, "journalctl", "--no-pager", "-u", "test-dra"); strings.Count(said, "unprepare") != 2 {
		t.Errorf("the driver was told: %s", said)
	}
	e.on(node, "rm", "-f", "/var/lib/kubelet/plugins_registry/dra.sock")
	e.eventually(2*time.Minute, func() string {
		slices, err := e.c.Client.ResourceV1().ResourceSlices().List(e.Context(), metav1.ListOptions{})
		if err != nil || len(slices.Items) > 0 {
			return fmt.Sprintf("there are slices of a driver that is gone: %d (%v)", len(slices.Items), err)
		}
		return ""
	})
}
