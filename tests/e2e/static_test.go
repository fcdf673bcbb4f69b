package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/registry"
	"github.com/vk-metal/vk-metal/tests/workload"
)

const manifests = "/etc/vk-metal/manifests"

// staticManifest is a pod whose container shows its version.
func (e *env) staticManifest(version string) []byte {
	return fmt.Appendf(nil, `apiVersion: v1
kind: Pod
metadata:
  name: static
  namespace: %s
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: %s
    command: [sh, -c, "trap 'exit 0' TERM; echo %s; while :; do sleep 0.1; done"]
`, e.ns, registry.Busybox, version)
}

// TestStaticPod runs a pod from a manifest: it is shown in the API, lives on when its
// mirror is deleted and when its agent restarts, follows its file, and ends with it.
func TestStaticPod(t *testing.T) {
	e := setup(t)
	node := cluster.NodeName(0)
	e.configure(node, "staticPodPath: "+manifests)
	file, name := manifests+"/web.yaml", "static-"+node
	e.write(node, file, e.staticManifest("one"))
	t.Cleanup(func() { _, _ = e.machine(node).Run(context.Background(), "rm", "-f", file) })
	first := e.mirror(name, "one")
	units := e.staticUnits(first)
	if len(units) != 1 {
		t.Fatalf("units of the static pod: %v", units)
	}

	if err := e.c.Client.CoreV1().Pods(e.ns).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	e.eventually(time.Minute, func() string {
		if pod, err := e.c.Client.CoreV1().Pods(e.ns).Get(t.Context(), name, metav1.GetOptions{}); err != nil || pod.UID == first.UID {
			return "the mirror was not made again"
		}
		return ""
	})
	again := e.mirror(name, "one")
	e.on(node, "systemctl", "restart", "vk-metal.service")
	if now := e.staticUnits(again); fmt.Sprint(now) != fmt.Sprint(units) {
		t.Errorf("%v became %v", units, now)
	}
	e.eventually(time.Minute, func() string { // the agent may be on its way back just now
		out, stderr, err := workload.Exec(e.Context(), e.c.Config, again, "", nil, "echo", "inside")
		if err != nil || out != "inside\n" {
			return fmt.Sprintf("exec said %q (%v %s)", out, err, stderr)
		}
		return ""
	})

	e.write(node, file, []byte("apiVersion: v1\nkind: Pod\nspec: 3\n"))
	e.eventually(time.Minute, func() string {
		if !strings.Contains(e.on(node, "journalctl", "-u", "vk-metal.service", "-n", "200", "-o", "cat"), file+":3:") {
			return "the agent does not name file and line of a bad manifest"
		}
		return ""
	})
	e.write(node, file, e.staticManifest("two"))
	e.mirror(name, "two")

	e.on(node, "rm", file)
	e.waitGone(name, time.Minute)
	e.nothingLeft(node)
}

func (e *env) write(node, file string, data []byte) {
	e.Helper()
	e.on(node, "mkdir", "-p", manifests)
	if err := e.machine(node).WriteFile(e.Context(), file, data, 0o600); err != nil {
		e.Fatal(err)
	}
}

// mirror waits until the API shows a running static pod that has logged its version.
func (e *env) mirror(name, version string) *corev1.Pod {
	e.Helper()
	var pod *corev1.Pod
	e.eventually(time.Minute, func() string {
		now, err := e.c.Client.CoreV1().Pods(e.ns).Get(e.Context(), name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return "no mirror"
		}
		if err != nil {
			return err.Error()
		}
		if why := running(now); why != "" {
			return why
		}
		data, err := e.c.Client.CoreV1().Pods(e.ns).GetLogs(name, &corev1.PodLogOptions{}).DoRaw(e.Context())
		if err != nil || string(data) != version+"\n" {
			return fmt.Sprintf("log %q (%v), want %s", data, err, version)
		}
		pod = now
		return ""
	})
	if pod == nil {
		e.FailNow()
	}
	return pod
}

// staticUnits are the units of the static pod that a mirror shows.
func (e *env) staticUnits(mirror *corev1.Pod) map[string]string {
	e.Helper()
	own := map[string]string{}
	for unit, pid := range e.units(mirror.Spec.NodeName) {
		if strings.Contains(unit, mirror.Annotations[corev1.MirrorPodAnnotationKey]) {
			own[unit] = pid
		}
	}
	return own
}

// TestShutdownRunsPreStop reboots a machine by systemctl: the pod's preStop hook runs before
// the network goes, and the API is told why the pod ended.
func TestShutdownRunsPreStop(t *testing.T) {
	setup(t).checkShutdown(cluster.NodeName(1), "20s", 3*time.Minute)
}

// checkShutdown reboots the node, which gives its pods the grace period; a step may take the
// timeout.
func (e *env) checkShutdown(node, grace string, timeout time.Duration) {
	e.Helper()
	e.configure(node, "shutdownGracePeriod: "+grace)
	e.eventually(timeout, func() string {
		if !strings.Contains(e.on(node, "busctl", "call", "org.freedesktop.login1", "/org/freedesktop/login1",
			"org.freedesktop.login1.Manager", "ListInhibitors"), "vk-metal") {
			return "no delay lock"
		}
		return ""
	})
	dir := "/var/lib/e2e-" + e.ns
	pod := e.busybox("hooked", "trap 'echo term >>/out/log; exit 0' TERM; while :; do sleep 0.1; done")
	pod.Spec.NodeName, pod.Spec.TerminationGracePeriodSeconds = node, ptr.To(int64(60))
	pod.Spec.Volumes = []corev1.Volume{{Name: "out", VolumeSource: corev1.VolumeSource{
		HostPath: &corev1.HostPathVolumeSource{Path: dir, Type: ptr.To(corev1.HostPathDirectoryOrCreate)},
	}}}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "out", MountPath: "/out"}}
	pod.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{
		Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "echo hook >>/out/log; sleep 1; echo over >>/out/log"}},
	}}
	e.create(pod)
	e.waitPod("hooked", timeout, running)
	machine := e.machine(node)
	_, boot, err := machine.State(e.Context())
	if err != nil {
		e.Fatal(err)
	}
	e.on(node, "systemctl", "reboot")
	ended := e.waitPod("hooked", timeout, phase(corev1.PodFailed))
	if ended.Status.Reason != "Terminated" || ended.Status.Message != "Pod was terminated in response to imminent node shutdown." {
		e.Errorf("reason %q, message %q", ended.Status.Reason, ended.Status.Message)
	}
	e.eventually(timeout, func() string {
		if _, now, err := machine.State(e.Context()); err != nil || now == boot {
			return fmt.Sprintf("no reboot (%v)", err)
		}
		return ""
	})
	if err := machine.WaitBooted(e.Context()); err != nil {
		e.Fatal(err)
	}
	if log := e.on(node, "cat", dir+"/log"); log != "hook\nover\nterm\n" {
		e.Errorf("the container saw %q", log)
	}
	e.on(node, "rm", "-r", dir)
	e.nodeReady(node)
}

// nodeReady waits until the node is Ready.
func (e *env) nodeReady(node string) {
	e.Helper()
	e.eventually(3*time.Minute, func() string {
		n, err := e.c.Client.CoreV1().Nodes().Get(e.Context(), node, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				return ""
			}
		}
		return "not Ready"
	})
}
