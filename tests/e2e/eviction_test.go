package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/workload"
)

// smallDisk puts a file system of its own, with 768 MiB to spare, in the place of the agent's
// state: the image store leaves 256 MiB alone.
const smallDisk = `set -e
lib=/var/lib/vk-metal
systemctl stop vk-metal.service
mkdir /run/small-disk
mount -t tmpfs -o mode=755,size=$(($(du -sm $lib | cut -f1) + 768))m small-disk /run/small-disk
cp -a $lib/. /run/small-disk/
mount --bind /run/small-disk $lib
umount /run/small-disk
rmdir /run/small-disk`

// largeDisk takes it away.
const largeDisk = `lib=/var/lib/vk-metal
if mountpoint -q $lib; then systemctl stop vk-metal.service; umount -l $lib; fi
systemctl restart vk-metal.service`

// giveSmallDisk restarts the node's agent on a small disk until the test's end.
func (e *env) giveSmallDisk(node string) {
	e.Helper()
	e.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := e.machine(node).Run(ctx, "bash", "-c", largeDisk); err != nil {
			e.Errorf("give the disk back: %v", err)
		}
	})
	e.on(node, "bash", "-c", smallDisk)
}

// TestDiskPressure fills the disk of a node: the node says so and is tainted, the pod that
// has filled it is evicted and no other one, new pods are turned away; and when the shortage is
// over the node takes pods again.
func TestDiskPressure(t *testing.T) {
	e := setup(t)
	node := cluster.NodeName(1)
	e.giveSmallDisk(node)
	e.configure(node, "evictionHard: {nodefs.available: 20%}\nevictionPressureTransitionPeriod: 1h")

	for name, priority := range map[string]string{"modest": "", "greedy": "", "critical": "system-node-critical"} {
		pod := e.busybox(name, "trap 'exit 0' TERM; dd if=/dev/zero of=/small bs=1M count=2; while :; do sleep 3600 & wait $!; done")
		pod.Spec.NodeName, pod.Spec.PriorityClassName = node, priority
		pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
		e.create(pod)
	}
	for _, name := range []string{"modest", "greedy", "critical"} {
		e.waitPod(name, podTimeout, running)
	}
	units := e.podUnits(e.pod("modest"))

	begun := time.Now()
	// As much as there is; the eviction may come before its end, and end it.
	_, _, err := workload.Exec(e.Context(), e.c.Config, e.pod("greedy"), "", nil, "sh", "-c", "dd if=/dev/zero of=/data/big bs=1M 2>/dev/null; true")
	t.Logf("filled the disk (%v)", err)
	greedy := e.waitPod("greedy", 2*time.Minute, phase(corev1.PodFailed))
	t.Logf("evicted %s after the disk was full", time.Since(begun).Round(time.Millisecond))
	if s := greedy.Status; s.Reason != "Evicted" || !strings.HasPrefix(s.Message, "The node was low on resource: ephemeral-storage. Threshold quantity: ") {
		t.Errorf("%s: %q", s.Reason, s.Message)
	}
	disrupted := e.conditionOf(greedy, corev1.DisruptionTarget)
	if disrupted.Status != corev1.ConditionTrue || disrupted.Reason != corev1.PodReasonTerminationByKubelet {
		t.Errorf("DisruptionTarget: %+v", disrupted)
	}
	e.waitEvent(greedy, "Evicted")
	e.waitNodeEvent(node, "EvictionThresholdMet")
	e.waitNodeEvent(node, "NodeHasDiskPressure")
	for _, name := range []string{"modest", "critical"} {
		if why := running(e.pod(name)); why != "" {
			t.Errorf("%s: %s\n%s", name, why, describe(e.pod(name)))
		}
	}
	if now := e.podUnits(e.pod("modest")); fmt.Sprint(now) != fmt.Sprint(units) {
		t.Errorf("units of the modest pod: %v became %v", units, now)
	}
	e.eventually(time.Minute, func() string { return e.tainted(node, true) })
	refused := e.busybox("refused", "exec sleep 3600")
	refused.Spec.NodeName = node
	e.create(refused)
	s := e.waitPod("refused", podTimeout, phase(corev1.PodFailed)).Status
	if s.Reason != "Evicted" || s.Message != "Pod was rejected: The node had condition: [DiskPressure]. " {
		t.Errorf("%s: %q", s.Reason, s.Message)
	}

	e.on(node, "systemctl", "restart", "vk-metal.service") // it forgets a shortage that is over, as a kubelet
	e.eventually(time.Minute, func() string { return e.tainted(node, false) })
	after := e.busybox("after", "exec sleep 3600")
	after.Spec.NodeName = node
	e.create(after)
	e.waitPod("after", podTimeout, running)
	for _, name := range []string{"modest", "greedy", "critical", "refused", "after"} {
		e.remove(name, time.Minute) // before their disk goes
	}
	e.nothingLeft(node)
}

func (e *env) conditionOf(pod *corev1.Pod, kind corev1.PodConditionType) corev1.PodCondition {
	for _, c := range pod.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.PodCondition{}
}

// tainted says what is wrong with the node's taint for want of disk.
func (e *env) tainted(node string, want bool) string {
	return e.taintedWith(node, corev1.TaintNodeDiskPressure, want)
}

// waitNodeEvent waits for an event of the node since the test began.
func (e *env) waitNodeEvent(node, reason string) {
	e.Helper()
	e.eventually(time.Minute, func() string {
		list, err := e.c.Client.CoreV1().Events(metav1.NamespaceDefault).List(e.Context(), metav1.ListOptions{
			FieldSelector: "involvedObject.kind=Node,involvedObject.name=" + node + ",reason=" + reason,
		})
		if err != nil {
			return err.Error()
		}
		if len(list.Items) == 0 {
			return "no event " + reason + " of " + node
		}
		return ""
	})
}
