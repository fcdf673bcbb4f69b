package e2e

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/tests/workload"
)

// TestV2MemoryPressure fills the memory of the node with one pod: that is evicted and no other
// one, and the node says so. Its pods may have a few processes only.
func TestV2MemoryPressure(t *testing.T) {
	e := setupV2(t)
	e.on(v2Node(), "sh", "-c", "sync; echo 3 >/proc/sys/vm/drop_caches")
	e.configure(v2Node(), "evictionHard: {memory.available: 384Mi}\nevictionPressureTransitionPeriod: 1h\npodPidsLimit: 32")
	e.create(limited(e.onV2("modest", "exec sleep 36000"), "64Mi"))
	modest := e.waitPod("modest", v2Timeout, running)
	checkV2Processes(e, modest)
	units := e.podUnits(modest)

	greedy := e.onV2("greedy", `while [ $(awk '/MemAvailable/{print int($2/1024)}' /proc/meminfo) -gt 280 ]; do
	dd if=/dev/zero of=/mem/$((n=n+1)) bs=1M count=16 2>/dev/null
done; exec sleep 36000`)
	greedy.Spec.Volumes = []corev1.Volume{{Name: "mem", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}}}
	greedy.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "mem", MountPath: "/mem"}}
	e.create(greedy)
	s := e.waitPod("greedy", v2Timeout, phase(corev1.PodFailed)).Status
	if s.Reason != "Evicted" || !strings.HasPrefix(s.Message, "The node was low on resource: memory. Threshold quantity: 384Mi, available: ") {
		t.Errorf("%s: %q", s.Reason, s.Message)
	}
	e.waitNodeEvent(v2Node(), "NodeHasInsufficientMemory")
	if why := running(e.pod("modest")); why != "" {
		t.Errorf("modest: %s\n%s", why, describe(e.pod("modest")))
	}
	if now := e.podUnits(modest); fmt.Sprint(now) != fmt.Sprint(units) {
		t.Errorf("units of the modest pod: %v became %v", units, now)
	}
	e.create(e.onV2("refused", "exec sleep 36000"))
	s = e.waitPod("refused", v2Timeout, phase(corev1.PodFailed)).Status
	if s.Reason != "Evicted" || s.Message != "Pod was rejected: The node had condition: [MemoryPressure]. " {
		t.Errorf("%s: %q", s.Reason, s.Message)
	}
}

// checkV2Processes starts more processes than the pod may have.
func checkV2Processes(e *env, pod *corev1.Pod) {
	if got := e.on(v2Node(), "cat", e.podGroup(pod)+"/pids.max"); got != "32\n" {
		e.Errorf("pids.max is %q, want 32", got)
	}
	_, stderr, err := workload.Exec(e.Context(), e.c.Config, pod, "", nil, "sh", "-c", "for i in $(seq 40); do sleep 600 >/dev/null 2>&1 & done")
	if err == nil || !strings.Contains(stderr, "Resource temporarily unavailable") {
		e.Errorf("40 processes: %v: %q", err, stderr)
	}
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

// TestV2Shutdown reboots the node, whose pods get time and hooks for it.
func TestV2Shutdown(t *testing.T) {
	setupV2(t).checkShutdown(v2Node(), "2m", v2Timeout)
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
