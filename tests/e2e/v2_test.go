package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilexec "k8s.io/client-go/util/exec"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/workload"
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
	one := limited(e.onV2("one", `echo out; echo err >&2; trap 'sleep 2; echo bye; exit 0' TERM; sleep 36000 & wait`), "64Mi")
	one.Spec.TerminationGracePeriodSeconds = ptr.To(int64(120))
	e.create(one)
	pod := e.waitPod("one", v2Timeout, running)
	t.Logf("runs %s after it was made", time.Since(start).Round(time.Second))
	for name, check := range map[string]func(*env, *corev1.Pod){
		"logs": checkV2Logs, "exec": checkV2Exec, "inside": checkV2Inside, "cgroups": checkV2Cgroups,
		"stats": checkV2Stats, "agent": checkV2Agent,
	} {
		t.Run(name, func(t *testing.T) { check(e.in(t), pod) })
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

func checkV2Logs(e *env, pod *corev1.Pod) {
	e.eventually(time.Minute, func() string {
		if got := e.logs(pod.Name, &corev1.PodLogOptions{}); got != "out\nerr\n" && got != "err\nout\n" {
			return fmt.Sprintf("log is %q", got)
		}
		return ""
	})
	if got := e.logs(pod.Name, &corev1.PodLogOptions{TailLines: ptr.To(int64(1))}); got != "err\n" && got != "out\n" {
		e.Errorf("tail is %q", got)
	}
}

func checkV2Exec(e *env, pod *corev1.Pod) {
	stdout, stderr, err := workload.Exec(e.Context(), e.c.Config, pod, "", strings.NewReader("in"), "sh", "-c", "cat; echo err >&2; exit 42")
	var exit utilexec.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 42 || stdout != "in" || stderr != "err\n" {
		e.Errorf("stdout %q, stderr %q, %v; want in, err and exit code 42", stdout, stderr, err)
	}
	// The command is in the container's own cgroup, and bound by its limits with it.
	if got := e.exec(pod, "cat", "/proc/self/cgroup"); got != "0::/\n" {
		e.Errorf("cgroup of a command is %q", got)
	}
}

// checkV2Inside looks at the limits from the container: its own, and not to be changed.
func checkV2Inside(e *env, pod *corev1.Pod) {
	for script, want := range map[string]string{
		"cat /sys/fs/cgroup/memory.max": "67108864\n", "cat /sys/fs/cgroup/memory.swap.max": "0\n",
		"cat /sys/fs/cgroup/cpu.max":          "150000 100000\n",
		"cat /sys/fs/cgroup/cpu.weight":       v2Weight256,
		"cat /sys/fs/cgroup/pids.max":         "max\n",
		"cat /sys/fs/cgroup/memory.oom.group": "1\n",
		"cat /proc/1/cgroup":                  "0::/\n",
		"echo max >/sys/fs/cgroup/memory.max": "",
		"mkdir /sys/fs/cgroup/x":              "",
		"grep -c cgroup /proc/mounts":         "1\n",
	} {
		stdout, stderr, err := workload.Exec(e.Context(), e.c.Config, pod, "", nil, "sh", "-c", script)
		if want == "" {
			if !strings.Contains(stderr, "Read-only file system") {
				e.Errorf("%s: %q, %v, want it refused", script, stderr, err)
			}
		} else if err != nil || stdout != want {
			e.Errorf("%s: %q, %v %s, want %q", script, stdout, err, stderr, want)
		}
	}
}

// v2Weight256 is what a kubelet makes of 250 thousandths of a processor.
const v2Weight256 = "35\n"

// podGroup is the pod's cgroup on its node.
func (e *env) podGroup(pod *corev1.Pod) string {
	e.Helper()
	for unit := range e.podUnits(pod) {
		group := strings.TrimSpace(e.on(pod.Spec.NodeName, "systemctl", "show", "--property=ControlGroup", "--value", unit))
		return "/sys/fs/cgroup" + path.Dir(group)
	}
	e.Fatalf("pod %s has no unit", pod.Name)
	return ""
}

// checkV2Cgroups looks at what the host has: slices and their limits as a kubelet has.
func checkV2Cgroups(e *env, pod *corev1.Pod) {
	group := e.podGroup(pod)
	want := "/sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + strings.ReplaceAll(string(pod.UID), "-", "_") + ".slice"
	if group != want {
		e.Errorf("the pod's group is %s, want %s", group, want)
	}
	for file, want := range map[string]string{"memory.max": "67108864\n", "cpu.max": "150000 100000\n", "cpu.weight": v2Weight256, "pids.max": "max\n"} {
		if got := e.on(pod.Spec.NodeName, "cat", group+"/"+file); got != want {
			e.Errorf("%s of the pod is %q, want %q", file, got, want)
		}
	}
	// Two processors, against the 100 that every service has.
	if got := e.on(pod.Spec.NodeName, "cat", "/sys/fs/cgroup/kubepods.slice/cpu.weight"); got != "174\n" {
		e.Errorf("cpu.weight of all pods is %q, want 174", got)
	}
	controllers := e.on(pod.Spec.NodeName, "cat", group+"/cgroup.controllers")
	for _, name := range []string{"cpu", "memory", "pids"} {
		if !strings.Contains(controllers, name) {
			e.Errorf("controllers of the pod are %q, %s is not there", controllers, name)
		}
	}
}

// checkV2Stats compares what the node's API tells with what the kernel does.
func checkV2Stats(e *env, pod *corev1.Pod) {
	proxy := func(what string) []byte {
		data, err := e.c.Client.CoreV1().RESTClient().Get().Resource("nodes").Name(v2Node()).SubResource("proxy").Suffix(what).DoRaw(e.Context())
		if err != nil {
			e.Fatalf("%s: %v", what, err)
		}
		return data
	}
	var summary statsv1alpha1.Summary
	if err := json.Unmarshal(proxy("stats/summary"), &summary); err != nil {
		e.Fatal(err)
	}
	if cpu, memory := summary.Node.CPU, summary.Node.Memory; cpu == nil || memory == nil || *cpu.UsageCoreNanoSeconds == 0 || *memory.WorkingSetBytes < 32<<20 {
		e.Errorf("figures of the node: CPU %+v, memory %+v", cpu, memory)
	}
	var found bool
	for _, p := range summary.Pods {
		if p.PodRef.UID != string(pod.UID) || len(p.Containers) != 1 {
			continue
		}
		found = true
		c := p.Containers[0]
		if *c.CPU.UsageCoreNanoSeconds == 0 || *c.Memory.WorkingSetBytes == 0 || *c.Memory.UsageBytes > 64<<20 || c.Memory.AvailableBytes == nil {
			e.Errorf("figures of the container: CPU %d, memory %+v", *c.CPU.UsageCoreNanoSeconds, c.Memory)
		}
		// A container that sleeps may have waited for nothing yet.
		if c.CPU.PSI == nil || c.Memory.PSI == nil || c.IO == nil {
			e.Errorf("pressure of the container: CPU %+v, memory %+v, IO %+v", c.CPU.PSI, c.Memory.PSI, c.IO)
		}
		current, _ := strconv.ParseUint(strings.TrimSpace(e.on(v2Node(), "cat", e.podGroup(pod)+"/memory.current")), 10, 64)
		if got := *p.Memory.UsageBytes; got > 2*current+1<<20 || current > 2*got+1<<20 {
			e.Errorf("the pod uses %d bytes, its group says %d", got, current)
		}
	}
	if !found {
		e.Errorf("no figures of the pod in %+v", summary.Pods)
	}
	metrics := string(proxy("metrics/resource"))
	labels := fmt.Sprintf(`{container="main",namespace="%s",pod="one"}`, e.ns)
	for _, name := range []string{"container_cpu_usage_seconds_total", "container_memory_working_set_bytes"} {
		if !regexp.MustCompile(regexp.QuoteMeta(name+labels) + ` [0-9.e+]*[1-9]`).MatchString(metrics) {
			e.Errorf("/metrics/resource has no %s%s:\n%s", name, labels, metrics)
		}
	}
}

// checkV2Agent: neither the agent's end nor systemd's own rebirth is felt by a process.
func checkV2Agent(e *env, pod *corev1.Pod) {
	before := e.units(v2Node())
	for _, script := range []string{
		"systemctl kill --signal=KILL --kill-whom=main vk-metal.service", "systemctl restart vk-metal.service",
		"systemctl kill --signal=KILL --kill-whom=main vk-metal-log.service", "systemctl daemon-reload", "systemctl daemon-reexec",
	} {
		e.on(v2Node(), "/bin/sh", "-c", script)
		e.eventually(v2Timeout, func() string {
			out, err := e.machine(v2Node()).Run(e.Context(), "systemctl", "is-active", "vk-metal.service", "vk-metal-log.service")
			if err != nil || out != "active\nactive\n" {
				return fmt.Sprintf("after %s the units are %q", script, out)
			}
			return ""
		})
		if after := e.units(v2Node()); !maps.Equal(before, after) {
			e.Errorf("after %s: processes were %v and are %v", script, before, after)
		}
	}
	// The limits are what they were after systemd has read its units anew.
	if got := e.on(v2Node(), "cat", e.podGroup(pod)+"/memory.max"); got != "67108864\n" {
		e.Errorf("memory.max is %q", got)
	}
	e.eventually(v2Timeout, func() string {
		stdout, _, err := workload.Exec(e.Context(), e.c.Config, pod, "", nil, "cat", "/sys/fs/cgroup/memory.max")
		if err != nil || stdout != "67108864\n" {
			return fmt.Sprintf("exec: %q, %v", stdout, err)
		}
		return ""
	})
	status := e.pod(pod.Name).Status.ContainerStatuses[0]
	if status.RestartCount != 0 {
		e.Errorf("restarted %d times", status.RestartCount)
	}
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

// TestV2Quiet: systemd found nothing wrong with our units in all that came before.
func TestV2Quiet(t *testing.T) {
	e := setupV2(t)
	for _, script := range []string{
		"systemctl list-units --failed --plain --no-legend",
		"journalctl -b -q _PID=1 -p err | grep -v 'Failed to start vkm-' || true", // a command that is not there
		// Settings that this version does not know, or no longer.
		"journalctl -b -q _PID=1 | grep -E 'vk(m|-metal).*(Unknown|deprecated|gnoring|not supported)' || true",
	} {
		if got := e.on(v2Node(), "/bin/sh", "-c", script); got != "" {
			t.Errorf("%s:\n%s", script, got)
		}
	}
}

// TestV2Reboot reboots the virtual machine: its pods come back, the same pods.
func TestV2Reboot(t *testing.T) {
	e := setupV2(t)
	e.create(limited(e.onV2("stays", "sleep 36000"), "64Mi"))
	before := e.waitPod("stays", v2Timeout, running)
	machine := e.machine(v2Node())
	if err := machine.Reboot(e.Context()); err != nil {
		t.Fatal(err)
	}
	if err := machine.WaitBooted(e.Context()); err != nil {
		t.Fatal(err)
	}
	after := e.waitPod("stays", v2Timeout, restarted(1))
	if after.UID != before.UID {
		t.Errorf("the pod was %s and is %s", before.UID, after.UID)
	}
	checkV2Cgroups(e, after)
}
