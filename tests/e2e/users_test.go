package e2e

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/registry"
	"github.com/vk-metal/vk-metal/tests/workload"
)

// TestUserNamespace: a pod with users of its own, its probe and what kubectl runs in it are in
// one user namespace, which outlives the agent and goes with the pod.
func TestUserNamespace(t *testing.T) {
	setup(t).checkUsers(cluster.NodeName(0), podTimeout)
}

// checkUsers runs such a pod on the node; a step may take the timeout.
func (e *env) checkUsers(node string, timeout time.Duration) {
	e.Helper()
	pod := e.busybox("mapped", "exec sleep 3600")
	pod.Spec.NodeName, pod.Spec.HostUsers = node, ptr.To(false)
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr.To(int64(300))}
	pod.Spec.Volumes = []corev1.Volume{
		{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: "image", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: registry.Busybox}}},
	}
	main := &pod.Spec.Containers[0]
	main.VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}, {Name: "image", MountPath: "/image"}}
	main.ReadinessProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "cp /proc/self/uid_map /data/probe"}}},
		PeriodSeconds: 1, TimeoutSeconds: 60,
	}
	e.create(pod)
	pod = e.waitPod("mapped", timeout, allReady)
	units := e.podUnits(pod)

	const script = "cat /proc/self/uid_map /data/probe; touch /data/x; stat -c %u:%g / /data/x /etc/hosts /dev/termination-log /image/bin/sh"
	seen := e.exec(pod, "sh", "-c", script)
	lines := strings.Split(strings.TrimSpace(seen), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	if len(lines) != 7 || lines[0] != lines[1] || !strings.HasSuffix(lines[0], " 65536") || strings.Join(lines[2:], " ") != "0:0 0:300 0:0 0:0 0:0" {
		e.Errorf("inside: %q", lines)
	}
	for _, pid := range units {
		if owner := strings.Fields(lines[0])[1]; strings.TrimSpace(e.on(node, "stat", "-c", "%u", "/proc/"+pid)) != owner {
			e.Errorf("process %s is not user %s of the host", pid, owner)
		}
	}
	_, stderr, err := workload.Exec(e.Context(), e.c.Config, pod, "", nil, "mkdir", "/sys/fs/cgroup/x")
	if err == nil || !strings.Contains(stderr, "Read-only file system") {
		e.Errorf("make a cgroup: %v: %q", err, stderr)
	}
	e.on(node, "systemctl", "restart", "vk-metal.service")
	e.eventually(timeout, func() string {
		again, _, err := workload.Exec(e.Context(), e.c.Config, pod, "", nil, "sh", "-c", script)
		if err != nil || again != seen {
			return fmt.Sprintf("after a restart of the agent: %q, %v", again, err)
		}
		return ""
	})
	if after := e.podUnits(pod); !maps.Equal(units, after) {
		e.Errorf("units %v became %v", units, after)
	}
	e.remove("mapped", timeout)
	e.eventually(timeout, func() string { return e.on(node, "find", "/run/vk-metal/user-ids", "-type", "f") })
	e.nothingLeft(node)
}

func allReady(pod *corev1.Pod) string {
	for _, s := range pod.Status.ContainerStatuses {
		if !s.Ready {
			return s.Name + " is not ready"
		}
	}
	return running(pod)
}
