package e2e

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/artifacts"
	"github.com/vk-metal/vk-metal/tests/progress"
	"github.com/vk-metal/vk-metal/tests/registry"
)

// plugin runs tests/cmd/plugins on a node until the test ends.
func (e *env) plugin(node, unit string, args ...string) {
	e.Helper()
	store, err := artifacts.NewStore("", progress.New(e.Output()))
	if err != nil {
		e.Fatal(err)
	}
	program, err := store.Plugins(e.Context())
	if err != nil {
		e.Fatal(err)
	}
	machine := e.machine(node)
	const file = "/usr/local/bin/test-plugins"
	if err := machine.CopyIn(e.Context(), program, file); err != nil {
		e.Fatal(err)
	}
	e.on(node, append([]string{"systemd-run", "--collect", "--unit", unit, file}, args...)...)
	e.afterwards("stop plugin", func(ctx context.Context) error {
		_, err := machine.Run(ctx, "systemctl", "stop", unit)
		return err
	})
}

// afterwards runs when the test is over, and its context with it.
func (e *env) afterwards(what string, do func(context.Context) error) {
	e.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := do(ctx); err != nil {
			e.Errorf("%s: %v", what, err)
		}
	})
}

const (
	testDriver = "csi.test.example.com"
	driverData = "/var/lib/test-csi"
)

// driver installs the CSI driver on a node, with its CSIDriver, which change may alter.
func (e *env) driver(node string, change func(*storagev1.CSIDriverSpec)) {
	e.Helper()
	drivers := e.c.Client.StorageV1().CSIDrivers()
	object := &storagev1.CSIDriver{
		ObjectMeta: metav1.ObjectMeta{Name: testDriver},
		Spec: storagev1.CSIDriverSpec{
			AttachRequired: ptr.To(false), PodInfoOnMount: ptr.To(true), FSGroupPolicy: ptr.To(storagev1.FileFSGroupPolicy),
			VolumeLifecycleModes: []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent, storagev1.VolumeLifecycleEphemeral},
		},
	}
	if change != nil {
		change(&object.Spec)
	}
	if _, err := drivers.Create(e.Context(), object, metav1.CreateOptions{}); err != nil {
		e.Fatal(err)
	}
	e.afterwards("remove CSIDriver", func(ctx context.Context) error {
		return drivers.Delete(ctx, testDriver, metav1.DeleteOptions{})
	})
	e.plugin(node, "test-csi", "csi", testDriver, driverData)
	e.eventually(time.Minute, func() string {
		info, err := e.c.Client.StorageV1().CSINodes().Get(e.Context(), node, metav1.GetOptions{})
		if err != nil || len(info.Spec.Drivers) != 1 || info.Spec.Drivers[0].Name != testDriver || info.Spec.Drivers[0].Allocatable == nil {
			return "the driver is not in its CSINode"
		}
		return ""
	})
}

// ofDriver is a volume of the driver's.
func ofDriver(handle string) corev1.PersistentVolumeSource {
	return corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: testDriver, VolumeHandle: handle}}
}

// TestVolumesOfDrivers: a driver's volumes are staged and published, outlive the agent, and are
// given back although the pod went while it was away.
func TestVolumesOfDrivers(t *testing.T) {
	e := setupMore(t)
	node := e.c.Rig.Machines()[0].Name
	e.driver(node, nil)
	e.claim("csi-"+e.ns, corev1.PersistentVolumeFilesystem, ofDriver("csi-"+e.ns), "")
	pod := e.busybox("db", "echo kept >/data/file; sleep 3600")
	pod.Spec.NodeName = node
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr.To(int64(1234)), FSGroup: ptr.To(int64(4321))}
	pod.Spec.Volumes = []corev1.Volume{
		{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "csi-" + e.ns}}},
		{Name: "scratch", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: testDriver}}},
		{Name: "image", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: registry.Busybox}}},
	}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{
		{Name: "data", MountPath: "/data"},
		{Name: "scratch", MountPath: "/scratch"},
		{Name: "image", MountPath: "/image"},
		{Name: "image", MountPath: "/image-bin", SubPath: "bin"},
	}
	e.create(pod)
	pod = e.waitPod("db", podTimeout, running)
	if got := e.exec(pod, "sh", "-c", "cat /data/file /scratch/pod; touch /image/x || ls -d /image/bin /image-bin/sh"); got != "kept\ndb/image-bin/sh\n/image/bin\n" {
		t.Errorf("in the pod: %q", got)
	}
	stats := e.volumeStats(node, pod)
	if stats["data"] != 1234567 {
		t.Errorf("figures of the volumes: %v", stats)
	}

	e.on(node, "systemctl", "stop", "vk-metal.service")
	if err := e.c.Client.CoreV1().Pods(e.ns).Delete(e.Context(), "db", *metav1.NewDeleteOptions(0)); err != nil {
		t.Fatal(err)
	}
	if mounts := e.on(node, "cat", "/proc/self/mountinfo"); !strings.Contains(mounts, string(pod.UID)+"/volumes/kubernetes.io~csi") {
		t.Error("the volume went with the agent")
	}
	e.on(node, "systemctl", "start", "vk-metal.service")
	e.eventually(2*time.Minute, func() string {
		if mounts := e.on(node, "cat", "/proc/self/mountinfo"); strings.Contains(mounts, "kubernetes.io~csi") || strings.Contains(mounts, "globalmount") {
			return "volumes are published although their pod has gone"
		}
		return ""
	})
	if got := e.on(node, "cat", filepath.Join(driverData, "csi-"+e.ns, "file")); got != "kept\n" && got != "kept" {
		t.Errorf("the data is %q", got)
	}
}

// volumeStats are the capacities in the node's summary, by volume.
func (e *env) volumeStats(node string, pod *corev1.Pod) map[string]uint64 {
	e.Helper()
	data, err := e.c.Client.CoreV1().RESTClient().Get().Resource("nodes").Name(node).SubResource("proxy").Suffix("stats/summary").DoRaw(e.Context())
	if err != nil {
		e.Fatal(err)
	}
	var summary struct {
		Pods []struct {
			PodRef      struct{ UID string }
			VolumeStats []struct {
				Name          string
				CapacityBytes uint64
			} `json:"volume"`
		}
	}
	if err := json.Unmarshal(data, &summary); err != nil {
		e.Fatal(err)
	}
	stats := map[string]uint64{}
	for _, p := range summary.Pods {
		if p.PodRef.UID != string(pod.UID) {
			continue
		}
		for _, v := range p.VolumeStats {
			stats[v.Name] = v.CapacityBytes
		}
	}
	return stats
}

const (
	testDevice = "test.example.com/device"
	cdiKind    = "test.example.com/cdi"
	cdiSpecs   = "/var/run/cdi"
)

// cdiSpec writes what the Container Device Interface adds for the plugin's devices.
func (e *env) cdiSpec(node, more string) {
	e.Helper()
	text := "cdiVersion: 0.7.0\nkind: " + cdiKind + "\ndevices:\n"
	for _, id := range []string{"dev-0", "dev-1"} {
		text += `- name: ` + id + `
  containerEdits:
    env: ["CDI_DEVICE=` + id + `"]
    deviceNodes: [{path: /dev/cdi-zero, hostPath: /dev/zero, permissions: r, fileMode: 438, gid: 1234}]
    hooks:
    - {hookName: createContainer, path: /usr/local/bin/cdi-hook, args: [cdi-hook, ` + id + `], env: [CDI_HOOK=own]}
` + more
	}
	text += `containerEdits:
  env: [CDI_VENDOR=test]
  mounts: [{hostPath: /etc/os-release, containerPath: /cdi-mount, options: [ro, nosuid, nodev, bind]}]
  additionalGids: [4321]
`
	if err := e.machine(node).WriteFile(e.Context(), cdiSpecs+"/test.yaml.new", []byte(text), 0o644); err != nil {
		e.Fatal(err)
	}
	e.on(node, "mv", cdiSpecs+"/test.yaml.new", cdiSpecs+"/test.yaml")
}

// cdiHook writes into the container's root what it has been given, as a vendor's hooks do.
const cdiHook = `#!/bin/sh
root=$(sed 's/.*"root":{"path":"\([^"]*\)".*/\1/' config.json)
echo "hook $CDI_HOOK $1 $(id -u) $(grep -c '"status":"creating"') $CDI_VENDOR" >$root/cdi-hook
`

// withDevice is a pod that shows what it has with its device.
func (e *env) withDevice(name string) *corev1.Pod {
	pod := e.busybox(name, `test -c /dev/test-device && head -c 0 /dev/test-device && cat /test-mount >/dev/null && echo $TEST_DEVICES
echo $CDI_VENDOR $CDI_DEVICE $(head -c 3 /dev/cdi-zero | wc -c) $(stat -c %a:%g /dev/cdi-zero) $(grep -c ^ID=debian /cdi-mount) $(id -G | grep -cw 4321)
(echo >/cdi-mount) 2>&1 | sed 's/.*: //'
cat /cdi-hook
sleep 3600`)
	pod.Spec.Containers[0].Resources.Limits = corev1.ResourceList{testDevice: resource.MustParse("1")}
	return pod
}

// waitDevice waits until the pod has shown all that comes with the device.
func (e *env) waitDevice(pod, id string) {
	e.Helper()
	e.waitPod(pod, podTimeout, running)
	e.waitLog(pod, id+"\ntest "+id+` 3 666:1234 1 1
Read-only file system
hook own `+id+` 0 1 
`)
}

// TestDevicesOfPlugins: devices are counted, lent once, in the container with what CDI says of
// them, and still lent after a new start of the agent.
func TestDevicesOfPlugins(t *testing.T) {
	e := setupMore(t)
	node := e.c.Rig.Machines()[1].Name
	machine := e.machine(node)
	e.on(node, "mkdir", "-p", cdiSpecs)
	e.afterwards("remove CDI specification", func(ctx context.Context) error {
		_, err := machine.Run(ctx, "rm", "-r", cdiSpecs)
		return err
	})
	const hook = "/usr/local/bin/cdi-hook"
	if err := machine.WriteFile(e.Context(), hook, []byte(cdiHook), 0o755); err != nil {
		t.Fatal(err)
	}
	e.afterwards("remove hook", func(ctx context.Context) error {
		_, err := machine.Run(ctx, "rm", hook)
		return err
	})
	e.cdiSpec(node, "")
	e.plugin(node, "test-device", "device", testDevice, "2", cdiKind)
	e.eventually(time.Minute, func() string {
		n, err := e.c.Client.CoreV1().Nodes().Get(e.Context(), node, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if has := n.Status.Allocatable[testDevice]; has.Value() != 2 {
			return "the node does not have the devices"
		}
		return ""
	})
	e.create(e.withDevice("one"))
	e.waitDevice("one", "dev-0")
	if pod := e.pod("one"); pod.Spec.NodeName != node {
		t.Errorf("it was scheduled to %s", pod.Spec.NodeName)
	}
	e.on(node, "systemctl", "restart", "vk-metal.service")
	direct := e.withDevice("two")
	direct.Spec.NodeName = node
	e.create(direct)
	e.waitDevice("two", "dev-1")
	third := e.withDevice("three")
	third.Spec.NodeName = node
	e.create(third)
	pod := e.waitPod("three", podTimeout, phase(corev1.PodFailed))
	if pod.Status.Reason != "UnexpectedAdmissionError" && !strings.HasPrefix(pod.Status.Reason, "OutOf") {
		t.Errorf("the third pod failed with %q %q", pod.Status.Reason, pod.Status.Message)
	}
	e.remove("one", time.Minute)

	// What this node does not do for a device is named, and the pod waits for another specification.
	e.cdiSpec(node, "    - {hookName: createRuntime, path: /bin/true}\n")
	e.create(e.withDevice("four"))
	pod = e.waitPod("four", podTimeout, waiting("CreateContainerError"))
	if message := pod.Status.ContainerStatuses[0].State.Waiting.Message; !strings.Contains(message, cdiKind+"=dev-0: their specification has createRuntime hooks, of which this node runs createContainer ones only") {
		t.Errorf("it waits: %q", message)
	}
	e.cdiSpec(node, "")
	e.waitDevice("four", "dev-0")
}
