package e2e

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/tests/cluster"
)

// shortage is something that a node runs out of because of one pod.
type shortage struct {
	name, resource   string
	condition, event string
	taint            string
	// settings of the node, from what it has now.
	settings func(e *env, node string) string
	// take is what the greedy pod does, with a volume in memory at /memory and one on the disk at /disk.
	take string
	// disk gives the node a small one of its own first.
	disk bool
}

var shortages = []shortage{
	{
		// What pods may have is measured at their own group: the memory of the machine is its host's.
		name: "memory", resource: "memory", condition: "MemoryPressure", event: "NodeHasInsufficientMemory", taint: corev1.TaintNodeMemoryPressure,
		settings: func(e *env, node string) string {
			total := e.number(node, "awk '/^MemTotal/ {print $2}' /proc/meminfo") << 10
			return fmt.Sprintf("kubeReserved: {memory: %d}\nevictionHard: {memory.available: 500Mi}", total-1<<30)
		},
		take: "dd if=/dev/zero of=/memory/big bs=1M count=650",
	},
	{
		name: "processes", resource: "pids", condition: "PIDPressure", event: "NodeHasInsufficientPID", taint: corev1.TaintNodePIDPressure,
		settings: func(e *env, node string) string {
			limit := e.number(node, "sort -n /proc/sys/kernel/pid_max /proc/sys/kernel/threads-max | head -1")
			used := e.number(node, "cut -d/ -f2 /proc/loadavg | cut -d' ' -f1")
			return fmt.Sprintf("evictionHard: {pid.available: %d}", limit-used-700)
		},
		take: "for i in $(seq 1500); do sleep 3600 & done",
	},
	{
		name: "inodes", resource: "inodes", condition: "DiskPressure", event: "NodeHasDiskPressure", taint: corev1.TaintNodeDiskPressure,
		disk: true, // and more files than images of other tests have, which go first
		settings: func(e *env, node string) string {
			const lib = "/var/lib/vk-metal"
			used := e.number(node, "df --output=iused "+lib+" | tail -1")
			e.on(node, "mount", "-o", fmt.Sprintf("remount,nr_inodes=%d", used+42_000), lib)
			return "evictionHard: {nodefs.inodesFree: 20000}"
		},
		take: "for i in $(seq 40000); do : >/disk/$i; done",
	},
}

// TestPressure has a pod take too much of what a node cannot make more of: the node says
// so, that pod goes and no other one, and pods like it are turned away until the shortage is over.
func TestPressure(t *testing.T) {
	e := setupMore(t)
	for _, s := range shortages {
		t.Run(s.name, func(t *testing.T) { e.in(t).starved(cluster.NodeName(1), s) })
	}
}

func (e *env) starved(node string, s shortage) {
	if s.disk {
		e.giveSmallDisk(node)
	}
	e.configure(node, s.settings(e, node)+"\nevictionPressureTransitionPeriod: 1h")
	modest, greedy, refused := s.name+"-modest", s.name+"-greedy", s.name+"-refused"
	for _, name := range []string{modest, greedy} {
		pod := e.busybox(name, "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done")
		pod.Spec.NodeName = node
		pod.Spec.Volumes = []corev1.Volume{
			{Name: "memory", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
			{Name: "disk", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		}
		pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "memory", MountPath: "/memory"}, {Name: "disk", MountPath: "/disk"}}
		e.create(pod)
	}
	units := e.podUnits(e.waitPod(modest, podTimeout, running))
	victim := e.waitPod(greedy, podTimeout, running)

	begun := time.Now()
	e.exec(victim, "sh", "-c", "("+s.take+") >/dev/null 2>&1 &")
	victim = e.waitPod(greedy, 2*time.Minute, phase(corev1.PodFailed))
	e.Logf("evicted %s after it began to take", time.Since(begun).Round(time.Millisecond))
	if got, want := victim.Status, "The node was low on resource: "+s.resource+". "; got.Reason != "Evicted" || !strings.HasPrefix(got.Message, want) {
		e.Errorf("%s: %q", got.Reason, got.Message)
	}
	e.waitEvent(victim, "Evicted")
	e.waitNodeEvent(node, s.event)
	e.eventually(time.Minute, func() string { return e.taintedWith(node, s.taint, true) })
	late := e.busybox(refused, "exec sleep 3600")
	late.Spec.NodeName = node
	e.create(late)
	if got := e.waitPod(refused, podTimeout, phase(corev1.PodFailed)).Status; got.Reason != "Evicted" || got.Message != "Pod was rejected: The node had condition: ["+s.condition+"]. " {
		e.Errorf("%s: %q", got.Reason, got.Message)
	}
	if now := e.podUnits(e.pod(modest)); fmt.Sprint(now) != fmt.Sprint(units) {
		e.Errorf("units of the modest pod: %v became %v", units, now)
	}
	e.on(node, "systemctl", "restart", "vk-metal.service") // it forgets a shortage that is over, as a kubelet
	e.eventually(time.Minute, func() string { return e.taintedWith(node, s.taint, false) })
	for _, name := range []string{modest, greedy, refused} {
		e.remove(name, time.Minute)
	}
	e.nothingLeft(node)
}

// number is what a command on the node prints.
func (e *env) number(node, script string) int64 {
	e.Helper()
	out := strings.TrimSpace(e.on(node, "bash", "-c", script))
	n, err := strconv.ParseInt(out, 10, 64)
	if err != nil {
		e.Fatalf("%s on %s prints %q", script, node, out)
	}
	return n
}

// taintedWith says what is wrong with a taint of the node.
func (e *env) taintedWith(node, key string, want bool) string {
	n, err := e.c.Client.CoreV1().Nodes().Get(e.Context(), node, metav1.GetOptions{})
	if err != nil {
		return err.Error()
	}
	is := slices.ContainsFunc(n.Spec.Taints, func(taint corev1.Taint) bool {
		return taint.Key == key && taint.Effect == corev1.TaintEffectNoSchedule
	})
	if is != want {
		return fmt.Sprintf("taints of %s are %v; conditions %v", node, n.Spec.Taints, n.Status.Conditions)
	}
	return ""
}
