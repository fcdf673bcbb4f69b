package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/workload"
)

// probeV2 gives a container that serves /etc on 8081 a probe of each kind.
func probeV2(c *corev1.Container) {
	probe := func(handler corev1.ProbeHandler) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: handler, PeriodSeconds: 2, TimeoutSeconds: 60, FailureThreshold: 30}
	}
	port := intstr.FromInt32(8081)
	c.StartupProbe = probe(corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"pidof", "httpd"}}})
	c.LivenessProbe = probe(corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/hostname", Port: port}})
	c.ReadinessProbe = probe(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: port}})
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
	terminal, err := workload.ExecTTY(e.Context(), e.c.Config, pod, remotecommand.TerminalSize{Width: 123, Height: 45}, "sh", "-c", "tty; stty size")
	if err != nil || !strings.Contains(terminal, "/dev/pts/") || !strings.Contains(terminal, "45 123") {
		e.Errorf("on a terminal: %q, %v", terminal, err)
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
	if node := summary.Node; node.CPU != nil && node.CPU.PSI == nil || node.Memory != nil && node.Memory.PSI == nil || node.IO == nil {
		e.Errorf("pressure of the node: CPU %+v, memory %+v, IO %+v", node.CPU, node.Memory, node.IO)
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
	series := regexp.MustCompile(fmt.Sprintf(`container_pressure_cpu_waiting_seconds_total\{container="main",id="/kubepods[^"]+",image="[^"]+",name="%s/main/0",namespace="%s",pod="one"\} `, pod.UID, e.ns))
	if metrics := string(proxy("metrics/cadvisor")); !series.MatchString(metrics) {
		e.Errorf("/metrics/cadvisor has no %s:\n%s", series, metrics)
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
	// The limits are what they were made after systemd has read its units anew.
	if got := e.on(v2Node(), "cat", e.podGroup(pod)+"/memory.max"); got != v2Resized {
		e.Errorf("memory.max is %q", got)
	}
	e.eventually(v2Timeout, func() string {
		stdout, _, err := workload.Exec(e.Context(), e.c.Config, pod, "", nil, "cat", "/sys/fs/cgroup/memory.max")
		if err != nil || stdout != v2Resized {
			return fmt.Sprintf("exec: %q, %v", stdout, err)
		}
		return ""
	})
	status := e.pod(pod.Name).Status.ContainerStatuses[0]
	if status.RestartCount != 0 {
		e.Errorf("restarted %d times", status.RestartCount)
	}
}

// checkV2Forward reads a file through a forwarded port.
func checkV2Forward(e *env, pod *corev1.Pod) {
	want := strings.Fields(e.exec(pod, "sha256sum", "/etc/hosts"))[0]
	ports := e.forward(pod, 8081)
	if got, err := e.hashOf(fmt.Sprintf("http://127.0.0.1:%d/hosts", ports[8081])); err != nil || got != want {
		e.Errorf("through the forwarded port came %s, want %s (%v)", got, want, err)
	}
}

// checkV2Devices: the container may make any device node, and open those alone that a runtime
// allows. A BPF program decides, which systemd loads anew whenever it reads its units.
func checkV2Devices(e *env, pod *corev1.Pod) {
	for script, refused := range map[string]bool{
		"head -c 1 /dev/zero | wc -c; echo x >/dev/null; head -c 1 /dev/urandom >/dev/null": false,
		"rm -f /tty; mknod /tty c 5 0; mknod /zero c 1 5; head -c 1 /zero; rm /zero /tty":   false,
		"rm -f /disk; mknod /disk b 254 0 && head -c 1 /disk":                               true, // the machine's
		"rm -f /kmsg; mknod /kmsg c 1 11 && head -c 1 /kmsg":                                true,
	} {
		_, stderr, err := workload.Exec(e.Context(), e.c.Config, pod, "", nil, "sh", "-c", script)
		switch {
		case refused && (err == nil || !strings.Contains(stderr, "Operation not permitted")):
			e.Errorf("%s: %v: %q, want it not permitted", script, err, stderr)
		case !refused && (err != nil || stderr != ""):
			e.Errorf("%s: %v: %q", script, err, stderr)
		}
	}
}

// v2Resized is the memory limit that checkV2Resize gives.
const v2Resized = "100663296\n"

// checkV2Resize changes the limits of the running container.
func checkV2Resize(e *env, pod *corev1.Pod) {
	before := e.podUnits(pod)
	const patch = `{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":"500m","memory":"32Mi"},"limits":{"cpu":"1200m","memory":"96Mi"}}}]}}`
	_, err := e.c.Client.CoreV1().Pods(e.ns).Patch(e.Context(), pod.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "resize")
	if err != nil {
		e.Fatal(err)
	}
	now := e.waitPod(pod.Name, v2Timeout, resizedTo("500m"))
	if r := now.Status.ContainerStatuses[0].Resources; r.Limits.Memory().Value() != 96<<20 || r.Limits.Cpu().MilliValue() != 1200 {
		e.Errorf("the status says %+v", r)
	}
	for file, want := range map[string]string{"memory.max": v2Resized, "cpu.max": "120000 100000\n", "cpu.weight": "59\n"} {
		if got := e.on(pod.Spec.NodeName, "cat", e.podGroup(pod)+"/"+file); got != want {
			e.Errorf("%s of the pod is %q, want %q", file, got, want)
		}
		if got := e.exec(pod, "cat", "/sys/fs/cgroup/"+file); got != want {
			e.Errorf("%s of the container is %q, want %q", file, got, want)
		}
	}
	if after := e.podUnits(pod); !maps.Equal(before, after) {
		e.Errorf("processes were %v and are %v", before, after)
	}
}
