package e2e

import (
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/registry"
)

// attackRounds is how often a node's neighbours are asked during one attack.
const attackRounds = 20

// attack is a pod that takes all of something that it can get.
type attack struct {
	name, image, script string
	change              func(*corev1.Pod)
	// ends says how the pod ends by itself, nil for one that goes on.
	ends func(*corev1.Pod) string
	// bounded, run on the node, says what is too much; nothing if all is well. $NS is the
	// namespace.
	bounded string
}

// attacks have limits as a cautious cluster gives them: 64 MiB, half a processor.
var attacks = []attack{
	{name: "nothing", script: "sleep 3600"}, // what the figures are compared with
	{name: "forks", script: "f() { f | f & }; f; sleep 3600"},
	{
		name: "eats-memory", script: "tail /dev/zero",
		ends: endedAs("OOMKilled"),
	},
	{
		name: "fills-disk", script: "while :; do dd if=/dev/zero of=/data/$((i += 1)) bs=1M count=16 2>/dev/null; done",
		change: withSmallDir, ends: evicted,
		bounded: `[ $(du -sm /var/lib/vk-metal/pods | cut -f1) -lt 2000 ] || du -sm /var/lib/vk-metal/pods`,
	},
	{
		name: "floods-log", script: `exec yes "$(printf '%0200d' 0)"`,
		bounded: `[ $(du -sm /var/log/pods/${NS}_floods-log_* | cut -f1) -lt 200 ] || du -sm /var/log/pods/${NS}_floods-log_*`,
	},
	{
		// A host may allow one process less than 100,000: several share them.
		name: "opens-files", image: registry.Agnhost,
		script: `ulimit -n $(ulimit -Hn); n=$(ulimit -n); [ $n -le 16000 ] || n=16000
			for p in 1 2 3 4 5 6 7; do (for i in $(seq 1 $((n - 20))); do exec {fd}</dev/null || break; done; echo $i; sleep 3600) & done; wait`,
		change: func(p *corev1.Pod) { p.Spec.Containers[0].Command[0] = "bash" },
	},
}

func withSmallDir(p *corev1.Pod) {
	limit := resource.MustParse("32Mi")
	p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &limit}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
}

func endedAs(reason string) func(*corev1.Pod) string {
	return func(p *corev1.Pod) string {
		for _, s := range p.Status.ContainerStatuses {
			if t := s.State.Terminated; t != nil && t.Reason == reason {
				return ""
			}
		}
		return "not ended as " + reason
	}
}

func evicted(p *corev1.Pod) string {
	if p.Status.Phase == corev1.PodFailed && p.Status.Reason == "Evicted" {
		return ""
	}
	return "not evicted"
}

// TestAttack runs every attack on a node and asks its neighbours and its agent meanwhile: all
// of them answer, none is restarted, the node stays ready. How long they take is printed.
func TestAttack(t *testing.T) {
	if shared != nil && os.Getenv("VK_METAL_HOSTILE") == "" {
		t.Skip("takes a node's resources for minutes: make hostile")
	}
	e := setupFor(t, 15*time.Minute)
	node := cluster.NodeName(1)
	neighbour := e.busybox("neighbour", "mkdir /www; echo fine > /www/index.html; exec httpd -f -p 8080 -h /www")
	neighbour.Spec.NodeName = node
	e.create(neighbour)
	neighbour = e.waitPod("neighbour", podTimeout, running)
	before := e.podUnits(neighbour)
	agent := e.agentOf(node)
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) { e.in(t).attacked(node, neighbour, a) })
	}
	if after := e.podUnits(neighbour); !maps.Equal(before, after) {
		t.Errorf("units of the neighbour: %v became %v", before, after)
	}
	if now := e.agentOf(node); now != agent {
		t.Errorf("the agent was process %s and is %s", agent, now)
	}
	e.nothingLeft(node)
}

func (e *env) agentOf(node string) string {
	return strings.TrimSpace(e.on(node, "systemctl", "show", "-P", "MainPID", "vk-metal.service"))
}

func (e *env) attacked(node string, neighbour *corev1.Pod, a attack) {
	pod := e.busybox(a.name, a.script)
	pod.Spec.NodeName, pod.Spec.RestartPolicy = node, corev1.RestartPolicyNever
	if a.image != "" {
		pod.Spec.Containers[0].Image = a.image
	}
	pod.Spec.Containers[0].Resources.Limits = corev1.ResourceList{
		corev1.ResourceMemory: resource.MustParse("64Mi"), corev1.ResourceCPU: resource.MustParse("500m"),
	}
	if a.change != nil {
		a.change(pod)
	}
	e.create(pod)
	e.waitPod(a.name, podTimeout, begun)
	var answers, starts []time.Duration
	for round := range attackRounds {
		answers = append(answers, took(func() {
			if got := e.exec(neighbour, "wget", "-q", "-O", "-", "http://127.0.0.1:8080/"); got != "fine\n" {
				e.Errorf("the neighbour answers %q", got)
			}
		}))
		if round%5 == 0 {
			starts = append(starts, took(func() { e.beside(node, a.name+"-beside-"+strconv.Itoa(round)) }))
		}
	}
	if a.ends != nil {
		e.waitPod(a.name, 2*time.Minute, a.ends)
	}
	if a.bounded != "" {
		if much := e.on(node, "bash", "-c", "NS="+e.ns+"; "+a.bounded); much != "" {
			e.Errorf("too much is taken: %s", much)
		}
	}
	if ready := e.tainted(node, false); ready != "" {
		e.Error(ready)
	}
	e.Logf("a neighbour asked through kubectl exec: median %s, longest %s; a pod's start beside it: median %s, longest %s; the attacker's end: %s",
		middle(answers), slices.Max(answers), middle(starts), slices.Max(starts), e.remove(a.name, time.Minute).Round(time.Millisecond))
}

// beside starts a pod on the node and takes it away.
func (e *env) beside(node, name string) {
	pod := e.busybox(name, "exec sleep 3600")
	pod.Spec.NodeName = node
	e.create(pod)
	e.waitPod(name, podTimeout, running)
	e.remove(name, time.Minute)
}

// begun is met once a container has been started, whatever has become of it.
func begun(p *corev1.Pod) string {
	if p.Status.Phase == corev1.PodPending || p.Status.Phase == "" {
		return "has not begun"
	}
	return ""
}

func took(do func()) time.Duration {
	begin := time.Now()
	do()
	return time.Since(begin).Round(time.Millisecond)
}

func middle(times []time.Duration) time.Duration {
	times = slices.Sorted(slices.Values(times))
	return times[len(times)/2]
}
