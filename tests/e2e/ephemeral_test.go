package e2e

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"

	"github.com/vk-metal/vk-metal/tests/registry"
	"github.com/vk-metal/vk-metal/tests/workload"
)

// debug adds an ephemeral container with a terminal, as `kubectl debug -it --target` does,
// and waits until it runs.
func (e *env) debug(pod, name, target, script string) *corev1.Pod {
	e.Helper()
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error { // with the agent, which updates its status
		now := e.pod(pod)
		now.Spec.EphemeralContainers = append(now.Spec.EphemeralContainers, corev1.EphemeralContainer{
			EphemeralContainerCommon: corev1.EphemeralContainerCommon{
				Name: name, Image: registry.Busybox, Command: []string{"sh", "-c", script}, Stdin: true, TTY: true,
				Env: []corev1.EnvVar{{Name: "WHO", Value: name}},
			},
			TargetContainerName: target,
		})
		_, err := e.c.Client.CoreV1().Pods(e.ns).UpdateEphemeralContainers(e.Context(), pod, now, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		e.Fatal(err)
	}
	return e.waitPod(pod, podTimeout, func(p *corev1.Pod) string {
		for _, status := range p.Status.EphemeralContainerStatuses {
			if status.Name == name && status.State.Running != nil {
				return ""
			}
		}
		return fmt.Sprintf("ephemeral containers are %+v", p.Status.EphemeralContainerStatuses)
	})
}

// TestEphemeralContainer looks into a running container from beside it, through the death
// of the agent, and leaves the container alone.
func TestEphemeralContainer(t *testing.T) {
	e := setup(t)
	e.create(e.busybox("app", "echo here >/mine; exec sleep 3600"))
	e.waitPod("app", podTimeout, running)
	pod := e.debug("app", "debugger", "main", "exec sh")
	s := e.attachTo(pod, "debugger", true)
	s.says("cat /proc/1/cmdline | tr '\\0' ' '; echo $WHO", "sleep 3600 debugger\r\n")
	s.says("cat /proc/1/root/mine", "here\r\n")
	if out, _, err := workload.Exec(e.Context(), e.c.Config, pod, "debugger", nil, "readlink", "/proc/1/ns/pid"); err != nil || out != e.exec(pod, "readlink", "/proc/1/ns/pid") {
		t.Errorf("exec in the debugger sees the PID namespace %q, %v", out, err)
	}
	e.crash(pod.Spec.NodeName, "vk-metal.service")
	again := e.reattach(pod, "debugger")
	again.says("echo still $WHO; exit 7", "still debugger\r\n")
	again.ends()
	ended := e.waitPod("app", podTimeout, func(p *corev1.Pod) string {
		if end := p.Status.EphemeralContainerStatuses[0].State.Terminated; end == nil || end.ExitCode != 7 {
			return fmt.Sprintf("the debugger is %+v", p.Status.EphemeralContainerStatuses[0].State)
		}
		return ""
	})
	if got := e.logs("app", &corev1.PodLogOptions{Container: "debugger"}); !strings.Contains(got, "still debugger\r\n") {
		t.Errorf("the debugger's log is %q", got)
	}
	if main := ended.Status.ContainerStatuses[0]; main.RestartCount != 0 || main.State.Running == nil {
		t.Errorf("the container is %+v", main)
	}
}
