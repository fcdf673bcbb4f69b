package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-metal/vk-metal/tests/artifacts"
	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/registry"
	"github.com/vk-metal/vk-metal/tests/workload"
)

// Files of an agent that was built with -tags faults.
const (
	faultFile  = "/run/vk-metal-fault"
	faultFired = faultFile + ".fired"
)

// fewSteps are those that CI takes; make crash-matrix takes all.
var fewSteps = []string{"network/after", "start/before", "start/after", "completed/before", "kill-record/after", "release.network/after", "delete/before"}

// TestCrashMatrix kills the agent at each step that a pod's life has, on real systemd,
// while one pod is made, one deleted, one crashes and one is resized. Whatever the step:
// all come to what was asked for, no process is started twice, and nothing is left.
func TestCrashMatrix(t *testing.T) {
	e := setupFor(t, matrixTime())
	node := cluster.NodeName(0)
	steps := e.faultyAgent(node)
	if chosen := os.Getenv("VK_METAL_MATRIX"); chosen == "" {
		steps = fewSteps
	} else if chosen != "all" {
		steps = strings.Split(chosen, ",")
	}
	if _, err := e.c.Client.CoreV1().ConfigMaps(e.ns).Create(e.Context(), configMap(e.ns), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.c.Client.CoreV1().Services(e.ns).Create(e.Context(), victims(e.ns), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	steady := e.create(e.matrixPod(node, "steady", "exec sleep 3600"))
	e.waitPod("steady", podTimeout, running)
	for i, step := range steps {
		t.Run(strings.ReplaceAll(step, "/", " "), func(t *testing.T) {
			e := e.in(t)
			e.killedAt(node, step, i, e.pod(steady.Name))
		})
		if t.Failed() && os.Getenv("VK_METAL_MATRIX") != "all" {
			return
		}
	}
}

// matrixTime bounds the matrix: a step takes some 10 seconds.
func matrixTime() time.Duration {
	if os.Getenv("VK_METAL_MATRIX") != "" {
		return 50 * time.Minute
	}
	return 2 * testTime
}

// faultyAgent replaces the node's agent for the test and returns the steps that it has.
func (e *env) faultyAgent(node string) []string {
	e.Helper()
	root, err := artifacts.Root()
	if err != nil {
		e.Fatal(err)
	}
	binary := filepath.Join(e.TempDir(), "vk-metal")
	build := exec.CommandContext(e.Context(), "go", "build", "-tags", "faults", "-o", binary, "./cmd/vk-metal")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		e.Fatalf("build the agent: %v\n%s", err, out)
	}
	machine := e.machine(node)
	e.on(node, "sh", "-c", "test -e /usr/bin/vk-metal.packaged || cp -p /usr/bin/vk-metal /usr/bin/vk-metal.packaged")
	if err := machine.CopyIn(e.Context(), binary, "/usr/bin/vk-metal"); err != nil {
		e.Fatal(err)
	}
	e.on(node, "systemctl", "restart", "vk-metal.service")
	e.Cleanup(func() {
		script := "rm -f " + faultFile + "*; mv /usr/bin/vk-metal.packaged /usr/bin/vk-metal && systemctl restart vk-metal.service"
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := machine.Run(ctx, "sh", "-c", script); err != nil {
			e.Errorf("put the agent back: %v", err)
		}
	})
	return strings.Fields(e.on(node, "vk-metal", "fault-steps"))
}

func configMap(ns string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "config", Namespace: ns}, Data: map[string]string{"key": "value"}}
}

// victims is a Service that offers pods to clients: the end of those is held back.
func victims(ns string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "victims", Namespace: ns},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"offered": "yes"}, Ports: []corev1.ServicePort{{Port: 80}}},
	}
}

// waitOffered waits until the Service offers the pod.
func (e *env) waitOffered(pod string) {
	e.Helper()
	e.eventually(time.Minute, func() string {
		slices, err := e.c.Client.DiscoveryV1().EndpointSlices(e.ns).List(e.Context(), metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		for _, slice := range slices.Items {
			for _, endpoint := range slice.Endpoints {
				if endpoint.TargetRef != nil && endpoint.TargetRef.Name == pod {
					return ""
				}
			}
		}
		return "no Service offers pod " + pod
	})
}

// matrixPod is a pod with an init container and volumes, whose containers write down each start.
func (e *env) matrixPod(node, name, script string) *corev1.Pod {
	pod := e.busybox(name, "cat /config/key >/dev/null && echo main >>/data/starts; "+script)
	pod.Spec.NodeName = node
	pod.Spec.Volumes = []corev1.Volume{
		{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: "config"},
		}}},
	}
	main := &pod.Spec.Containers[0]
	main.VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}, {Name: "config", MountPath: "/config"}}
	main.Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m")}
	pod.Spec.InitContainers = []corev1.Container{{
		Name: "init", Image: registry.Busybox, Command: []string{"sh", "-c", "echo init >>/data/starts"},
		VolumeMounts: main.VolumeMounts[:1],
	}}
	return pod
}

// killedAt is one row of the matrix.
func (e *env) killedAt(node, step string, row int, steady *corev1.Pod) {
	name := func(kind string) string { return fmt.Sprintf("%s-%d", kind, row) }
	victim := e.matrixPod(node, name("victim"), "trap '' TERM; sleep 3600 & wait; wait") // deaf: it takes a KILL
	victim.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{
		Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "echo stop >>/data/stops"}},
	}}
	held := strings.HasPrefix(step, "hold/")
	if held {
		victim.Labels = map[string]string{"offered": "yes"}
	}
	e.create(victim)
	e.waitPod(victim.Name, podTimeout, running)
	if held {
		e.waitOffered(victim.Name)
	}
	before := e.podUnits(steady)
	e.on(node, "sh", "-c", fmt.Sprintf("rm -f %s /run/vk-metal/starts.json; echo %s:1 >%s.new && mv %s.new %s", faultFired, step, faultFile, faultFile, faultFile))
	begun := time.Now()
	e.resizeCPU(steady.Name, fmt.Sprintf("%dm", 20+row))
	fresh := e.create(e.matrixPod(node, name("fresh"), "exec sleep 3600"))
	crashing := e.create(e.matrixPod(node, name("crashing"), "exit 3"))
	if err := e.c.Client.CoreV1().Pods(e.ns).Delete(e.Context(), victim.Name, metav1.DeleteOptions{}); err != nil {
		e.Fatal(err)
	}
	e.waitGone(victim.Name, time.Minute)
	fresh = e.waitPod(fresh.Name, time.Minute, running)
	e.waitPod(crashing.Name, time.Minute, failedTwice)
	e.waitPod(steady.Name, time.Minute, resizedTo(fmt.Sprintf("%dm", 20+row)))
	e.eventually(time.Minute, func() string {
		if _, err := e.machine(node).Run(e.Context(), "test", "-e", faultFired); err != nil {
			return "the agent never came to step " + step
		}
		return ""
	})
	e.Logf("all as asked for %s after the step was armed", time.Since(begun).Round(time.Millisecond))
	e.eventually(time.Minute, func() string { // the agent may be on its way back just now
		starts, stderr, err := workload.Exec(e.Context(), e.c.Config, fresh, "", nil, "cat", "/data/starts")
		if err != nil || starts != "init\nmain\n" {
			return fmt.Sprintf("fresh pod: started %q (%v %s)", starts, err, stderr)
		}
		return ""
	})
	if count := fresh.Status.ContainerStatuses[0].RestartCount; count != 0 {
		e.Errorf("fresh pod: %d restarts", count)
	}
	if after := e.podUnits(steady); fmt.Sprint(after) != fmt.Sprint(before) {
		e.Errorf("steady pod: units %v became %v", before, after)
	}
	e.saneEvents(fresh, map[string]int{"Created": 2, "Started": 2, "Killing": 0, "BackOff": 0, "Failed": 0})
	e.remove(fresh.Name, time.Minute)
	e.remove(crashing.Name, time.Minute)
	e.nothingLeft(node)
}

// failedTwice is a what for waitPod: the container has been restarted, and its last end
// was its own.
func failedTwice(pod *corev1.Pod) string {
	for _, status := range pod.Status.ContainerStatuses {
		last := status.LastTerminationState.Terminated
		if status.RestartCount >= 1 && last != nil && last.ExitCode == 3 {
			return ""
		}
	}
	return "not restarted after its own end"
}

// resizedTo is a what for waitPod: the first container's CPU request is in effect, and no
// resize goes on.
func resizedTo(cpu string) func(*corev1.Pod) string {
	return func(pod *corev1.Pod) string {
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodResizePending || c.Type == corev1.PodResizeInProgress {
				return fmt.Sprintf("%s: %s %s", c.Type, c.Reason, c.Message)
			}
		}
		status := pod.Status.ContainerStatuses[0]
		if status.Resources == nil || !status.Resources.Requests.Cpu().Equal(resource.MustParse(cpu)) {
			return fmt.Sprintf("resources are %v, want %s CPU", status.Resources, cpu)
		}
		return ""
	}
}

// resizeCPU asks for another CPU request through the resize sub-resource.
func (e *env) resizeCPU(name, cpu string) {
	e.Helper()
	patch := fmt.Sprintf(`{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":%q}}}]}}`, cpu)
	_, err := e.c.Client.CoreV1().Pods(e.ns).Patch(e.Context(), name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "resize")
	if err != nil {
		e.Fatal(err)
	}
}

// saneEvents checks that no event was told more often than it happened. One may be lost
// with the agent that was to tell it.
func (e *env) saneEvents(pod *corev1.Pod, most map[string]int) {
	e.Helper()
	events := e.events(pod)
	for reason, limit := range most {
		if events[reason].count > limit {
			e.Errorf("pod %s: %d events %s, want at most %d; all: %v", pod.Name, events[reason].count, reason, limit, events)
		}
	}
}

// waitGone waits until the pod's object does not exist.
func (e *env) waitGone(name string, timeout time.Duration) {
	e.Helper()
	e.eventually(timeout, func() string {
		list, err := e.c.Client.CoreV1().Pods(e.ns).List(e.Context(), metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String(),
		})
		switch {
		case err != nil:
			return err.Error()
		case len(list.Items) > 0:
			return "pod is there: " + describe(&list.Items[0])
		}
		return ""
	})
}
