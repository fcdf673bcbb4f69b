package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/registry"
	"github.com/vk-metal/vk-metal/tests/workload"
)

const podTimeout = time.Minute

func TestNodesAreReady(t *testing.T) {
	e := setup(t)
	nodes, err := e.c.Client.CoreV1().Nodes().List(e.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(nodes.Items) < 2 {
		t.Fatalf("%d nodes, want 2", len(nodes.Items))
	}
	for _, node := range nodes.Items {
		if len(node.Spec.Taints) != 0 || len(node.Spec.PodCIDRs) != 2 {
			t.Errorf("%s: taints %v, pod ranges %v", node.Name, node.Spec.Taints, node.Spec.PodCIDRs)
		}
		machine := e.machine(node.Name)
		var addresses []string
		for _, address := range node.Status.Addresses {
			addresses = append(addresses, address.Address)
		}
		for _, want := range []string{machine.V4.String(), machine.V6.String(), machine.Name} {
			if !slices.Contains(addresses, want) {
				t.Errorf("%s: addresses %v lack %s", node.Name, addresses, want)
			}
		}
	}
}

func TestPodRunsLogsExecsAndGoes(t *testing.T) {
	e := setup(t)
	e.create(e.busybox("one", `echo out; echo err >&2; trap 'exit 0' TERM; while :; do sleep 0.1; done`))
	pod := e.waitPod("one", podTimeout, running)
	if len(pod.Status.PodIPs) != 2 || pod.Status.HostIP == "" || pod.Status.ContainerStatuses[0].ImageID == "" {
		t.Errorf("status lacks addresses or image: %+v", pod.Status)
	}
	e.waitLog("one", "out\nerr\n")
	checkMetrics(e, pod)
	if got := e.exec(pod, "hostname"); got != "one\n" {
		t.Errorf("hostname is %q", got)
	}
	if units := e.podUnits(pod); len(units) != 1 {
		t.Errorf("units on %s: %v", pod.Spec.NodeName, units)
	}
	e.diskFigures(pod)
	t.Logf("gone after %s", e.remove("one", time.Minute).Round(time.Millisecond))
	e.eventually(time.Minute, func() string {
		var left []string
		for line := range strings.Lines(e.on(pod.Spec.NodeName, "systemctl", "list-units", "--all", "--plain", "--no-legend")) {
			if strings.Contains(line, string(pod.UID)) || strings.Contains(line, strings.ReplaceAll(string(pod.UID), "-", "_")) {
				left = append(left, line)
			}
		}
		return strings.Join(left, "")
	})
}

// diskFigures waits until the node tells what the pod, which has one container, takes of its disk.
func (e *env) diskFigures(pod *corev1.Pod) {
	e.Helper()
	e.exec(pod, "dd", "if=/dev/zero", "of=/file", "bs=1M", "count=3")
	takes := func(what string, fs *statsv1alpha1.FsStats, least uint64) string {
		if fs == nil || *fs.UsedBytes < least || *fs.UsedBytes > least+4<<20 || *fs.InodesUsed < 2 || *fs.CapacityBytes <= *fs.UsedBytes {
			return fmt.Sprintf("%s: %+v", what, fs)
		}
		return ""
	}
	e.eventually(2*time.Minute, func() string {
		data, err := e.c.Client.CoreV1().RESTClient().Get().Resource("nodes").Name(pod.Spec.NodeName).SubResource("proxy").Suffix("stats/summary").DoRaw(e.Context())
		var summary statsv1alpha1.Summary
		if err := errors.Join(err, json.Unmarshal(data, &summary)); err != nil {
			return err.Error()
		}
		for _, p := range summary.Pods {
			if p.PodRef.UID == string(pod.UID) && len(p.Containers) == 1 {
				c := p.Containers[0]
				return takes("layer", c.Rootfs, 3<<20) + takes("logs", c.Logs, 1) + takes("pod", p.EphemeralStorage, 3<<20)
			}
		}
		return "no figures of the pod"
	})
}

func TestExec(t *testing.T) {
	e := setup(t)
	e.create(e.busybox("one", "sleep 3600"))
	pod := e.waitPod("one", podTimeout, running)
	t.Run("exit code", func(t *testing.T) {
		_, _, err := workload.Exec(e.Context(), e.c.Config, pod, "", nil, "sh", "-c", "exit 42")
		var exit utilexec.ExitError
		if !errors.As(err, &exit) || exit.ExitStatus() != 42 {
			t.Errorf("got %v, want exit code 42", err)
		}
	})
	t.Run("streams", func(t *testing.T) {
		stdout, stderr, err := workload.Exec(e.Context(), e.c.Config, pod, "", strings.NewReader("in"), "sh", "-c", "cat; echo err >&2")
		if err != nil || stdout != "in" || stderr != "err\n" {
			t.Errorf("stdout %q, stderr %q, %v", stdout, stderr, err)
		}
	})
	t.Run("binary through stdin and stdout", func(t *testing.T) {
		var all strings.Builder
		for range 4096 {
			for b := range 256 {
				all.WriteByte(byte(b))
			}
		}
		stdout, _, err := workload.Exec(e.Context(), e.c.Config, pod, "", strings.NewReader(all.String()), "cat")
		if err != nil || stdout != all.String() {
			t.Errorf("%d bytes of %d came back: %v", len(stdout), all.Len(), err)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		out, err := workload.ExecTTY(e.Context(), e.c.Config, pod, remotecommand.TerminalSize{Width: 123, Height: 45}, "sh", "-c",
			// A command does not wait for its terminal's size for long.
			`for i in $(seq 300); do [ "$(stty size)" = "45 123" ] && break; sleep 0.1; done; tty; stty size`)
		if err != nil || !strings.Contains(out, "/dev/pts/") || !strings.Contains(out, "45 123") {
			t.Errorf("got %q, %v", out, err)
		}
	})
	t.Run("a terminal hangs up with its client", func(t *testing.T) {
		ctx, cancel := context.WithCancel(e.Context())
		defer cancel()
		go func() { _, _ = workload.ExecTTY(ctx, e.c.Config, pod, remotecommand.TerminalSize{}, "sleep", "54321") }()
		e.in(t).eventually(time.Minute, func() string {
			if strings.Contains(e.exec(pod, "ps"), "sleep 54321") {
				return ""
			}
			return "the command does not run"
		})
		cancel()
		e.in(t).eventually(time.Minute, func() string { return lineWith(e.exec(pod, "ps"), "sleep 54321") })
	})
	t.Run("no such command", func(t *testing.T) {
		if _, _, err := workload.Exec(e.Context(), e.c.Config, pod, "", nil, "/no/such"); err == nil {
			t.Error("it ran")
		}
	})
}

// TestInitContainersRunInOrder: and what they leave in a file may be another one's environment.
func TestInitContainersRunInOrder(t *testing.T) {
	e := setup(t)
	pod := e.busybox("init", "cat /shared/order; echo $LAST $NONE; sleep 3600")
	fromFile := func(name, key string) corev1.EnvVar {
		ref := &corev1.FileKeySelector{VolumeName: "shared", Path: "env", Key: key, Optional: ptr.To(key != "LAST")}
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FileKeyRef: ref}}
	}
	pod.Spec.Containers[0].Env = []corev1.EnvVar{fromFile("LAST", "LAST"), fromFile("NONE", "MISSING")}
	mount := []corev1.VolumeMount{{Name: "shared", MountPath: "/shared"}}
	pod.Spec.Volumes = []corev1.Volume{{Name: "shared", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	pod.Spec.Containers[0].VolumeMounts = mount
	for _, name := range []string{"a", "b", "c"} {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{
			Name: name, Image: registry.Busybox, VolumeMounts: mount,
			Command: []string{"sh", "-c", "sleep 0.2; echo " + name + " >>/shared/order; echo \"LAST='it was " + name + "'\" >/shared/env"},
		})
	}
	e.create(pod)
	e.waitPod("init", podTimeout, running)
	e.waitLog("init", "a\nb\nc\nit was c\n")
}

func TestRestartPolicies(t *testing.T) {
	e := setup(t)
	cases := map[string]struct {
		policy corev1.RestartPolicy
		exit   int
		want   corev1.PodPhase
	}{
		"never-fails":     {corev1.RestartPolicyNever, 3, corev1.PodFailed},
		"never-succeeds":  {corev1.RestartPolicyNever, 0, corev1.PodSucceeded},
		"on-failure-good": {corev1.RestartPolicyOnFailure, 0, corev1.PodSucceeded},
	}
	for name, c := range cases {
		pod := e.busybox(name, fmt.Sprintf("echo bye; exit %d", c.exit))
		pod.Spec.RestartPolicy = c.policy
		e.create(pod)
		ended := e.waitPod(name, podTimeout, phase(c.want))
		state := ended.Status.ContainerStatuses[0].State.Terminated
		if state == nil || int(state.ExitCode) != c.exit || state.FinishedAt.IsZero() {
			t.Errorf("%s: terminated as %+v", name, state)
		}
		if got := e.logs(name, &corev1.PodLogOptions{}); got != "bye\n" {
			t.Errorf("%s: log of a dead container is %q", name, got)
		}
	}
}

func TestCrashingContainerBacksOff(t *testing.T) {
	e := setup(t)
	e.create(e.busybox("crash", "echo attempt; exit 1"))
	pod := e.waitPod("crash", 2*time.Minute, waiting("CrashLoopBackOff"))
	if pod.Status.Phase != corev1.PodRunning || pod.Status.ContainerStatuses[0].LastTerminationState.Terminated == nil {
		t.Errorf("status of a pod that crashes:\n%s", describe(pod))
	}
	if got := e.logs("crash", &corev1.PodLogOptions{Previous: true}); got != "attempt\n" {
		t.Errorf("previous log is %q", got)
	}
	e.remove("crash", time.Minute)
}

// TestOutOfMemory: a container that takes more memory than it may is killed and says why, in
// its status and after its restart.
func TestOutOfMemory(t *testing.T) {
	e := setup(t)
	for name, policy := range map[string]corev1.RestartPolicy{"never": corev1.RestartPolicyNever, "always": corev1.RestartPolicyAlways} {
		pod := e.busybox(name, "exec dd if=/dev/zero of=/dev/null bs=200M count=1")
		pod.Spec.RestartPolicy = policy
		pod.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("32Mi")}
		e.create(pod)
	}
	killed := func(end *corev1.ContainerStateTerminated) bool {
		return end != nil && end.Reason == "OOMKilled" && end.ExitCode == 137
	}
	ended := e.waitPod("never", podTimeout, phase(corev1.PodFailed))
	if end := ended.Status.ContainerStatuses[0].State.Terminated; !killed(end) {
		t.Errorf("ended as %+v, want OOMKilled with 137", end)
	}
	again := e.waitPod("always", podTimeout, func(pod *corev1.Pod) string {
		if len(pod.Status.ContainerStatuses) == 0 || pod.Status.ContainerStatuses[0].RestartCount == 0 {
			return "not restarted"
		}
		return ""
	})
	if end := again.Status.ContainerStatuses[0].LastTerminationState.Terminated; !killed(end) {
		t.Errorf("the attempt before ended as %+v, want OOMKilled with 137", end)
	}
}

func TestGrace(t *testing.T) {
	e := setup(t)
	deaf := e.busybox("deaf", "trap '' TERM; while :; do sleep 0.1; done")
	deaf.Spec.TerminationGracePeriodSeconds = ptr.To(int64(3))
	polite := e.busybox("polite", "trap 'exit 0' TERM; while :; do sleep 0.1; done")
	polite.Spec.TerminationGracePeriodSeconds = ptr.To(int64(30))
	for _, pod := range []*corev1.Pod{deaf, polite} {
		e.create(pod)
		e.waitPod(pod.Name, podTimeout, running)
	}
	if took := e.remove("deaf", time.Minute); took < 3*time.Second {
		t.Errorf("a deaf container went after %s, its grace is 3 s", took)
	}
	t.Log("a polite container went after", e.remove("polite", time.Minute))
}

// TestLatency prints how long a pod of one container takes from create to Running with
// the image present.
func TestLatency(t *testing.T) {
	e := setup(t)
	e.create(e.busybox("warm", "sleep 3600"))
	node := e.waitPod("warm", podTimeout, running).Spec.NodeName
	const count = 50
	var times []time.Duration
	for i := range count {
		pod := e.busybox(fmt.Sprintf("p%d", i), "exec sleep 3600")
		pod.Spec.NodeName = node
		pod.Spec.TerminationGracePeriodSeconds = ptr.To(int64(0))
		start := time.Now()
		e.create(pod)
		e.waitPod(pod.Name, podTimeout, phase(corev1.PodRunning))
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	p50, p99 := times[count/2], times[count-1]
	t.Logf("create → Running, %d pods one after the other: min %s p50 %s p99 %s", count,
		times[0].Round(time.Millisecond), p50.Round(time.Millisecond), p99.Round(time.Millisecond))
}

// lineWith is the first line of text with part in it, "" for none.
func lineWith(text, part string) string {
	for line := range strings.Lines(text) {
		if strings.Contains(line, part) {
			return line
		}
	}
	return ""
}
