package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/cluster"
)

// v2Timeout is for a step on emulated processors, about 50 times slower than others.
const v2Timeout = 5 * time.Minute

// v2Node is the virtual machine with cgroup v2, Debian 13 and systemd 257.
func v2Node() string { return cluster.VirtualNodeName(0) }

// setupV2 skips without the virtual node.
func setupV2(t *testing.T) *env {
	t.Helper()
	if os.Getenv("VK_METAL_TEST_V2") == "" {
		t.Skip("boots a virtual machine, slow: set VK_METAL_TEST_V2=1")
	}
	return setup(t)
}

// onV2 is a pod of one container on the virtual node.
func (e *env) onV2(name, script string) *corev1.Pod {
	pod := e.busybox(name, script)
	pod.Spec.NodeName = v2Node()
	return pod
}

// limited gives the pod's container requests and limits.
func limited(pod *corev1.Pod, memory string) *corev1.Pod {
	pod.Spec.Containers[0].Resources = corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m"), corev1.ResourceMemory: resource.MustParse("16Mi")},
		Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m"), corev1.ResourceMemory: resource.MustParse(memory)},
	}
	return pod
}

func TestV2Node(t *testing.T) {
	e := setupV2(t)
	node, err := e.c.Client.CoreV1().Nodes().Get(e.Context(), v2Node(), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	info := node.Status.NodeInfo
	if !strings.Contains(info.OSImage, "Debian GNU/Linux 13") || !strings.Contains(info.ContainerRuntimeVersion, "257") {
		t.Errorf("node info %+v, want Debian 13 and systemd 257", info)
	}
	if got := node.Status.Capacity.Cpu().Value(); got != 2 {
		t.Errorf("%d processors, want 2", got)
	}
	for script, want := range map[string]string{
		"stat -f -c %T /sys/fs/cgroup":                                      "cgroup2fs\n",
		"systemd-analyze verify vk-metal.service vk-metal-log.service 2>&1": "",
	} {
		if got := e.on(v2Node(), "/bin/sh", "-c", script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
}

// TestV2Pod looks at one pod from all sides: what runs on emulated processors is worth
// keeping.
func TestV2Pod(t *testing.T) {
	e := setupV2(t)
	start := time.Now()
	one := limited(e.onV2("one", `echo out; echo err >&2; httpd -p 8081 -h /etc; trap 'sleep 2; echo bye; exit 0' TERM; sleep 36000 & wait`), "64Mi")
	one.Spec.TerminationGracePeriodSeconds = ptr.To(int64(120))
	probeV2(&one.Spec.Containers[0])
	e.create(one)
	pod := e.waitPod("one", v2Timeout, running)
	t.Logf("runs %s after it was made", time.Since(start).Round(time.Second))
	for _, check := range []struct {
		name string
		of   func(*env, *corev1.Pod)
	}{
		{"logs", checkV2Logs},
		{"exec", checkV2Exec},
		{"forward", checkV2Forward},
		{"inside", checkV2Inside},
		{"devices", checkV2Devices},
		{"cgroups", checkV2Cgroups},
		{"stats", checkV2Stats},
		{"resize", checkV2Resize},
		{"agent", checkV2Agent},
		{"devices again", checkV2Devices},
	} {
		t.Run(check.name, func(t *testing.T) { check.of(e.in(t), pod) })
	}
	t.Run("grace", func(t *testing.T) {
		e := e.in(t)
		if took := e.remove("one", v2Timeout); took < 2*time.Second || took > 2*time.Minute {
			t.Errorf("gone after %s: its handler of TERM sleeps for 2 s, its grace is 2 min", took)
		}
		e.eventually(v2Timeout, func() string {
			return e.on(v2Node(), "/bin/sh", "-c", "find /sys/fs/cgroup/kubepods.slice -name '*"+strings.ReplaceAll(string(pod.UID), "-", "_")+"*'")
		})
	})
}

// TestV2Ends runs pods that end in every way, together.
func TestV2Ends(t *testing.T) {
	e := setupV2(t)
	const eat = "dd if=/dev/zero of=/dev/null bs=200M count=1"
	cases := map[string]struct {
		script, reason string
		code           int32
	}{
		"good":      {"exit 0", "Completed", 0},
		"bad":       {"exit 3", "Error", 3},
		"segv":      {"ulimit -c 0; sh -c 'kill -SEGV $$$$'; exit $?", "Error", 139},
		"oom":       {"exec " + eat, "OOMKilled", 137},
		"oom-child": {eat + "; sleep 3600", "OOMKilled", 137}, // memory.oom.group: the whole container goes
	}
	for name, c := range cases {
		pod := e.onV2(name, c.script)
		if c.reason == "OOMKilled" {
			limited(pod, "32Mi")
		}
		pod.Spec.RestartPolicy = corev1.RestartPolicyNever
		e.create(pod)
	}
	missing := e.onV2("missing", "")
	missing.Spec.RestartPolicy = corev1.RestartPolicyNever
	missing.Spec.Containers[0].Command = []string{"/no/such/program"}
	e.create(missing)
	cases["missing"] = struct {
		script, reason string
		code           int32
	}{"", "StartError", 127}
	for name, c := range cases {
		want := corev1.PodFailed
		if c.code == 0 {
			want = corev1.PodSucceeded
		}
		status := e.waitPod(name, v2Timeout, phase(want)).Status.ContainerStatuses[0].State.Terminated
		if status == nil || status.Reason != c.reason || status.ExitCode != c.code && !(name == "missing" && status.ExitCode == 128) {
			t.Errorf("%s ended as %+v, want %s and %d", name, status, c.reason, c.code)
		}
	}
}

// TestV2Restart: a container that is killed for memory comes back, and both ends are told.
func TestV2Restart(t *testing.T) {
	e := setupV2(t)
	e.create(e.onV2("crash", "sleep 36000"))
	pod := e.waitPod("crash", v2Timeout, running)
	e.killMain(pod)
	pod = e.waitPod("crash", v2Timeout, restarted(1))
	last := pod.Status.ContainerStatuses[0].LastTerminationState.Terminated
	if last == nil || last.ExitCode != 137 || last.Reason != "Error" {
		t.Errorf("it ended as %+v, want Error and 137", last)
	}
}

// TestV2Unhealthy: a container whose probe fails is stopped, by its TERM, and started again.
func TestV2Unhealthy(t *testing.T) {
	e := setupV2(t)
	pod := e.onV2("ill", "trap 'exit 7' TERM; sleep 36000 & wait")
	pod.Spec.TerminationGracePeriodSeconds = ptr.To(int64(120))
	pod.Spec.Containers[0].LivenessProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "! test -e /dead"}}},
		PeriodSeconds: 1, TimeoutSeconds: 60, FailureThreshold: 1,
	}
	e.create(pod)
	e.exec(e.waitPod("ill", v2Timeout, running), "touch", "/dead") // in a layer that goes with the container
	pod = e.waitPod("ill", v2Timeout, restarted(1))
	last := pod.Status.ContainerStatuses[0].LastTerminationState.Terminated
	if last == nil || last.ExitCode != 7 {
		t.Errorf("it ended as %+v, want 7", last)
	}
	e.waitEvent(pod, "Unhealthy")
	e.waitEvent(pod, "Killing")
}

// TestV2Nested: a privileged container that divides its own cgroup, as Docker in Docker does, can
// be probed and entered.
func TestV2Nested(t *testing.T) {
	e := setupV2(t)
	pod := e.onV2("nested", `cd /sys/fs/cgroup && mkdir init && echo 1 >init/cgroup.procs
until echo "+memory +pids" >cgroup.subtree_control; do sleep 1; done # no probe is there
sleep 36000 & wait`)
	pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr.To(true)}
	pod.Spec.Containers[0].ReadinessProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"grep", "-qx", "0::/init", "/proc/self/cgroup"}}},
		PeriodSeconds: 1, TimeoutSeconds: 60,
	}
	e.create(pod)
	pod = e.waitPod("nested", v2Timeout, running)
	if got := e.exec(pod, "cat", "/proc/self/cgroup", "/sys/fs/cgroup/cgroup.subtree_control"); got != "0::/init\nmemory pids\n" {
		t.Errorf("cgroup of a command, and what the container's own gives on: %q", got)
	}
	e.remove("nested", v2Timeout)
}

// TestV2Users: a pod with users of its own on cgroup v2.
func TestV2Users(t *testing.T) {
	setupV2(t).checkUsers(v2Node(), v2Timeout)
}

// TestV2Mesh: pods of the virtual machine and of the container reach one another.
func TestV2Mesh(t *testing.T) {
	e := setupV2(t)
	e.deployWithin(2*v2Timeout, 2)
	nodes := map[string]bool{}
	for _, pod := range e.web() {
		nodes[pod.Spec.NodeName] = true
	}
	if !nodes[v2Node()] || len(nodes) != 2 {
		t.Fatalf("pods are on %v", nodes)
	}
	e.checkMesh()
}
