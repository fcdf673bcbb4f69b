package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/tests/registry"
	"github.com/vk-metal/vk-metal/tests/workload"
)

// restartGates are what the API server needs for TestRestartAllContainers.
const restartGates = "RestartAllContainersOnContainerExits=true,NodeDeclaredFeatures=true"

// TestRestartAllContainers: one exit restarts all containers of a pod, init and sidecar
// among them, with the agent killed while they end; address and volumes stay, hooks do not run.
func TestRestartAllContainers(t *testing.T) {
	e := setupMore(t)
	pod := e.create(e.restartsAll("all"))
	before := e.waitPod(pod.Name, podTimeout, running)
	e.inMain(before, "touch", "/mnt/go")
	e.waitPod(pod.Name, podTimeout, func(p *corev1.Pod) string {
		if c := e.conditionOf(p, corev1.AllContainersRestarting); c.Status != corev1.ConditionTrue {
			return fmt.Sprintf("condition %+v", c)
		}
		return ""
	})
	e.crash(before.Spec.NodeName, "vk-metal.service")
	after := e.waitPod(pod.Name, podTimeout, allRestarted)
	if after.Status.PodIP != before.Status.PodIP {
		t.Errorf("address %s, before %s", after.Status.PodIP, before.Status.PodIP)
	}
	if c := e.conditionOf(after, corev1.AllContainersRestarting); c.Status != corev1.ConditionFalse {
		t.Errorf("condition %+v", c)
	}
	if got := e.inMain(after, "sh", "-c", "cat /mnt/order; ls /mnt"); got != "init\nside\ninit\nside\ngo\norder\nsource\n" {
		t.Errorf("the volume has %q", got)
	}
}

// inMain runs a command in the container main of a pod with several.
func (e *env) inMain(pod *corev1.Pod, argv ...string) string {
	e.Helper()
	stdout, stderr, err := workload.Exec(e.Context(), e.c.Config, pod, "main", nil, argv...)
	if err != nil {
		e.Fatalf("exec %v: %v: %s", argv, err, stderr)
	}
	return stdout
}

// restartsAll is a pod whose container "source" exits with 42 once there is /mnt/go; a rule
// of it restarts all then. The others ignore TERM.
func (e *env) restartsAll(name string) *corev1.Pod {
	always, never := corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever
	pod := e.busybox(name, "trap '' TERM; while :; do sleep 1; done")
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	pod.Spec.Volumes = []corev1.Volume{{Name: "work"}}
	pod.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"touch", "/mnt/prestop"}}}}
	container := func(name, script string) corev1.Container {
		return corev1.Container{Name: name, Image: registry.Busybox, Command: []string{"sh", "-c", script}}
	}
	source := container("source", "[ ! -e /mnt/source ] || exec sleep 3600; touch /mnt/source; until [ -e /mnt/go ]; do sleep 0.1; done; exit 42")
	source.RestartPolicy = &never
	source.RestartPolicyRules = []corev1.ContainerRestartRule{{
		Action:    corev1.ContainerRestartRuleActionRestartAllContainers,
		ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
	}}
	pod.Spec.Containers = append(pod.Spec.Containers, source)
	side := container("side", "echo side >>/mnt/order; trap '' TERM; while :; do sleep 1; done")
	side.RestartPolicy = &always
	// Main containers come after it has begun to write.
	side.StartupProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"grep", "-q", "side", "/mnt/order"}}},
		PeriodSeconds: 1, FailureThreshold: 60,
	}
	pod.Spec.InitContainers = []corev1.Container{container("init", "echo init >>/mnt/order"), side}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			list[i].VolumeMounts = []corev1.VolumeMount{{Name: "work", MountPath: "/mnt"}}
		}
	}
	return pod
}

// allRestarted is a what for waitPod: every container was restarted once, and the pod is Ready.
func allRestarted(pod *corev1.Pod) string {
	var missing []string
	for _, cs := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if cs.RestartCount != 1 {
			missing = append(missing, fmt.Sprintf("%s was restarted %d times", cs.Name, cs.RestartCount))
		}
	}
	if len(missing) > 0 {
		return strings.Join(missing, ", ")
	}
	return running(pod)
}
