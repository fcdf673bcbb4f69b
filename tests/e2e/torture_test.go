package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/registry"
)

// TestTorture does random things to some 200 pods on two nodes while their agents are killed,
// D-Bus and systemd are restarted, the API server goes away and disks are full. At the end
// the nodes are what the API says, nothing is left over, and no container was restarted that
// did not have to be. What is done comes from a seed alone:
//
//	VK_METAL_TORTURE=10m VK_METAL_TORTURE_SEED=42 VK_METAL_TORTURE_PODS=200
//
// The clock is not stepped: machines share the host's. What depends on it is tested in the
// provider (TestClockIsSet).
func TestTorture(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("VK_METAL_TORTURE"))
	if err != nil {
		t.Skip("takes long: make torture")
	}
	seed, err := strconv.ParseUint(os.Getenv("VK_METAL_TORTURE_SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	pods := 200
	if n, err := strconv.Atoi(os.Getenv("VK_METAL_TORTURE_PODS")); err == nil {
		pods = n
	}
	e := setupFor(t, length+10*time.Minute)
	t.Logf("VK_METAL_TORTURE_SEED=%d", seed)
	if _, err := e.c.Client.CoreV1().ConfigMaps(e.ns).Create(t.Context(), configMap(e.ns), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	e.giveSmallDisk(smallDiskNode)
	e.configure(smallDiskNode, "evictionHard: {}") // a full disk ends no pod here
	w := &torture{env: e, random: rand.New(rand.NewPCG(seed, 1)), begun: time.Now(), done: map[string]int{}}
	for i := range pods {
		w.slots = append(w.slots, &slot{name: fmt.Sprintf("p%d", i), node: cluster.NodeName(i % 2), steady: i < pods/10})
	}
	w.run(length)
	w.settle()
	w.check()
	t.Logf("done: %v", w.done)
}

// smallDiskNode has a disk of its own, which can be filled.
var smallDiskNode = cluster.NodeName(1)

// torture is one run.
type torture struct {
	*env
	random *rand.Rand
	begun  time.Time
	slots  []*slot
	done   map[string]int
}

// slot is a pod's name; pods come and go in it.
type slot struct {
	name, node string
	// steady pods are made at the start and never touched.
	steady bool
	kind   string
	pod    *corev1.Pod       // as created; nil for none
	pids   map[string]string // of a steady pod
	// kills counts what was done to the pod's processes; excused says that more restarts
	// may have been needed.
	kills   int
	excused bool
}

// kinds of pods. Those of "crashes" and "ends" do so by themselves.
var kinds = []string{"deaf", "polite", "polite", "init", "hook", "probed", "sidecar", "crashes", "ends"}

func (w *torture) say(format string, args ...any) {
	w.Logf("%6.1fs "+format, append([]any{time.Since(w.begun).Seconds()}, args...)...)
}

// run makes the steady pods, then draws one action after another. The order of draws does
// not depend on what comes of them.
func (w *torture) run(length time.Duration) {
	for _, s := range w.slots {
		if s.steady {
			w.make(s, "polite")
		}
	}
	for _, s := range w.slots {
		if s.steady {
			s.pids = w.podUnits(w.waitPod(s.name, podTimeout, running))
		}
	}
	w.say("steady pods run")
	nextFault := 2 * time.Second
	for time.Since(w.begun) < length {
		w.act(w.slots[w.random.IntN(len(w.slots))], w.random.IntN(100), kinds[w.random.IntN(len(kinds))])
		pause := time.Duration(w.random.IntN(100)) * time.Millisecond
		fault, node, much := w.random.IntN(100), cluster.NodeName(w.random.IntN(2)), w.random.IntN(100)
		if time.Since(w.begun) > nextFault {
			w.fault(fault, node, much)
			nextFault = time.Since(w.begun) + time.Duration(2000+much*40)*time.Millisecond
		}
		time.Sleep(pause) // the load, not a wait for something
	}
}

// act does one thing to a slot.
func (w *torture) act(s *slot, what int, kind string) {
	switch {
	case s.steady:
	case s.pod == nil:
		w.make(s, kind)
	case what < 35:
		w.unmake(s, int64(what%4))
	case what < 55:
		w.crash(s)
	case what < 75:
		w.resize(s, fmt.Sprintf("%dm", 1+what%10))
	default:
		w.label(s, what)
	}
}

// make creates the slot's pod, if the one before is gone.
func (w *torture) make(s *slot, kind string) {
	pod, err := w.c.Client.CoreV1().Pods(w.ns).Create(w.Context(), w.pod(s, kind), metav1.CreateOptions{})
	if err != nil {
		w.failed("create", err)
		return
	}
	w.done["create "+kind]++
	s.pod, s.kind, s.kills, s.excused = pod, kind, 0, false
}

func (w *torture) pod(s *slot, kind string) *corev1.Pod {
	const polite = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"
	pod := w.busybox(s.name, polite)
	pod.Spec.NodeName = s.node
	main := &pod.Spec.Containers[0]
	main.Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1m")}
	switch kind {
	case "deaf":
		main.Command[2] = "exec sleep 3600"
	case "init":
		other := w.matrixPod(s.node, s.name, polite)
		other.Spec.Containers[0].Resources = main.Resources
		return other
	case "hook":
		main.Lifecycle = &corev1.Lifecycle{
			PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}},
			PreStop:   &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sleep", "0.2"}}},
		}
	case "probed":
		main.Command[2] = "httpd -p 8080; " + polite
		main.ReadinessProbe = &corev1.Probe{
			ProbeHandler:  corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}},
			PeriodSeconds: 1,
		}
	case "sidecar":
		pod.Spec.InitContainers = []corev1.Container{{
			Name: "side", Image: registry.Busybox, Command: []string{"sh", "-c", polite}, RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways),
		}}
	case "crashes":
		main.Command[2] = "exit 3"
	case "ends":
		main.Command[2] = "sleep 1"
		pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	}
	return pod
}

// unmake deletes the slot's pod; every fourth at once, without asking the node.
func (w *torture) unmake(s *slot, grace int64) {
	options := metav1.DeleteOptions{GracePeriodSeconds: &grace}
	err := w.c.Client.CoreV1().Pods(w.ns).Delete(w.Context(), s.name, options)
	if err != nil && !apierrors.IsNotFound(err) {
		w.failed("delete", err)
		return
	}
	w.done["delete"]++
	s.pod = nil
}

// crash kills the main processes of the pod's units.
func (w *torture) crash(s *slot) {
	script := fmt.Sprintf("n=0; for u in $(systemctl list-units --state=running --plain --no-legend 'vkm-%s-*.service' | awk '{print $1}'); do "+
		"p=$(systemctl show -P MainPID $u); [ \"${p:-0}\" = 0 ] || { kill -9 $p && n=$((n+1)); }; done; echo $n", s.pod.UID)
	out, err := w.machine(s.node).Run(w.Context(), "bash", "-c", script)
	if err != nil {
		w.failed("crash", err)
		s.kills += 2 // it may have been done
		return
	}
	n, _ := strconv.Atoi(strings.TrimSpace(out))
	w.done["crash"] += n
	s.kills += n
}

func (w *torture) resize(s *slot, cpu string) {
	patch := fmt.Sprintf(`{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":%q}}}]}}`, cpu)
	_, err := w.c.Client.CoreV1().Pods(w.ns).Patch(w.Context(), s.name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "resize")
	if err != nil {
		w.failed("resize", err)
		return
	}
	w.done["resize"]++
}

func (w *torture) label(s *slot, value int) {
	patch := fmt.Sprintf(`{"metadata":{"labels":{"changed":"%d"},"annotations":{"changed":"%d"}}}`, value, value)
	_, err := w.c.Client.CoreV1().Pods(w.ns).Patch(w.Context(), s.name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		w.failed("label", err)
		return
	}
	w.done["label"]++
}

// failed counts what was refused: a pod that ends just now, or an API server that is away.
func (w *torture) failed(what string, err error) {
	w.done["refused "+what]++
	if w.done["refused "+what] == 1 {
		w.say("first refusal: %s: %v", what, err)
	}
}

// fault does something to a node, or to the API server.
func (w *torture) fault(which int, node string, much int) {
	systemctl := func(args ...string) func() {
		return func() { w.must(node, append([]string{"systemctl"}, args...)...) }
	}
	for _, f := range []struct {
		below int
		name  string
		do    func()
	}{
		{45, "kill the agent", func() {
			w.must(node, "sh", "-c", "rm -f /run/vk-metal/starts.json; systemctl kill --signal=KILL --kill-who=main vk-metal.service")
		}},
		{55, "restart the agent", systemctl("restart", "--no-block", "vk-metal.service")},
		{63, "kill the log writer", systemctl("kill", "--signal=KILL", "--kill-who=main", "vk-metal-log.service")},
		{71, "restart D-Bus", systemctl("restart", "--no-block", "dbus.service")},
		{79, "re-execute systemd", systemctl("daemon-reexec")},
		{85, "reload systemd", systemctl("daemon-reload")},
		{89, "fill /run", func() { w.fill(node, time.Duration(1+much%5)*time.Second) }},
		{93, "fill the disk", func() { w.fillDisk(smallDiskNode, time.Duration(1+much%10)*time.Second) }},
		{100, "stop the API server", func() { w.outage(time.Duration(2+much%10) * time.Second) }},
	} {
		if which < f.below {
			w.say("%s (%s)", f.name, node)
			w.done[f.name]++
			f.do()
			return
		}
	}
}

// must runs a command on a node; D-Bus may be on its way just then.
func (w *torture) must(node string, argv ...string) {
	for try := 0; ; try++ {
		_, err := w.machine(node).Run(w.Context(), argv...)
		if err == nil {
			return
		}
		if try == 20 {
			w.Fatalf("%v on %s: %v", argv, node, err)
		}
		time.Sleep(250 * time.Millisecond)
	}
}

// fill leaves no room in /run, where the records of attempts are, and gives it back.
func (w *torture) fill(node string, length time.Duration) {
	w.must(node, "bash", "-c", "mount -o remount,size=$(($(df --output=used -B4096 /run | tail -1) * 4 + 4))k /run")
	w.excuse(node)
	time.Sleep(length) // the length of the fault
	w.must(node, "mount", "-o", "remount,size=20%", "/run")
}

// fillDisk leaves no room for images, layers, volumes and certificates, and gives it back.
func (w *torture) fillDisk(node string, length time.Duration) {
	w.must(node, "bash", "-c", "dd if=/dev/zero of=/var/lib/vk-metal/filler bs=1M 2>/dev/null; [ $(df --output=avail /var/lib/vk-metal | tail -1) = 0 ]")
	w.excuse(node)
	time.Sleep(length) // the length of the fault
	w.must(node, "rm", "/var/lib/vk-metal/filler")
}

// excuse the pods of a node: what had to start meanwhile could not.
func (w *torture) excuse(node string) {
	for _, s := range w.slots {
		if s.node == node && !s.steady {
			s.excused = true
		}
	}
}

// outage keeps the API server away while processes crash.
func (w *torture) outage(length time.Duration) {
	if err := w.c.ControlPlane.StopAPIServer(w.Context(), 0); err != nil {
		w.Fatal(err)
	}
	end := time.Now().Add(length)
	for _, s := range w.slots[len(w.slots)-5:] {
		if s.pod != nil && !s.steady {
			w.crash(s)
		}
	}
	time.Sleep(time.Until(end)) // the length of the fault
	if err := w.c.ControlPlane.StartAPIServer(context.WithoutCancel(w.Context()), 0); err != nil {
		w.Fatal(err)
	}
}

// settle waits until every pod is what it should be, and each that was deleted is gone.
func (w *torture) settle() {
	w.say("the storm is over")
	begun := time.Now()
	w.eventually(4*time.Minute, func() string {
		list, err := w.c.Client.CoreV1().Pods(w.ns).List(w.Context(), metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		now := map[string]*corev1.Pod{}
		for i := range list.Items {
			now[list.Items[i].Name] = &list.Items[i]
		}
		for _, s := range w.slots {
			if why := s.unsettled(now[s.name]); why != "" {
				return s.name + " (" + s.kind + "): " + why
			}
		}
		return ""
	})
	w.say("settled in %s", time.Since(begun).Round(100*time.Millisecond))
}

// unsettled says what is missing of a slot.
func (s *slot) unsettled(pod *corev1.Pod) string {
	switch {
	case s.pod == nil && pod == nil:
		return ""
	case s.pod == nil:
		return "is there:\n" + describe(pod)
	case pod == nil || pod.UID != s.pod.UID:
		return "is gone"
	}
	why := ""
	switch s.kind {
	case "crashes":
		if len(pod.Status.ContainerStatuses) == 0 || pod.Status.ContainerStatuses[0].RestartCount == 0 {
			why = "has not crashed"
		}
	case "ends":
		if p := pod.Status.Phase; p != corev1.PodSucceeded && p != corev1.PodFailed {
			why = "has not ended"
		}
	default:
		why = running(pod)
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodResizePending || c.Type == corev1.PodResizeInProgress && pod.Status.Phase == corev1.PodRunning {
			why += fmt.Sprintf(" %s: %s %s", c.Type, c.Reason, c.Message)
		}
	}
	if why != "" {
		why += "\n" + describe(pod)
	}
	return why
}

// check compares the nodes with the API.
func (w *torture) check() {
	list, err := w.c.Client.CoreV1().Pods(w.ns).List(w.Context(), metav1.ListOptions{})
	if err != nil {
		w.Fatal(err)
	}
	byName := map[string]*corev1.Pod{}
	for i := range list.Items {
		byName[list.Items[i].Name] = &list.Items[i]
	}
	for _, s := range w.slots {
		if pod := byName[s.name]; pod != nil {
			w.restarts(s, pod)
		}
	}
	for _, machine := range w.c.Machines() {
		w.nothingLeft(machine.Name)
		w.oneUnitEach(machine.Name, list.Items)
		if out, _ := machine.Run(w.Context(), "sh", "-c", "journalctl -u vk-metal.service -u vk-metal-log.service | grep -m3 -E 'panic: |fatal error: |DATA RACE'"); out != "" {
			w.Errorf("%s: %s", machine.Name, out)
		}
	}
}

// restarts checks that no container was restarted without need.
func (w *torture) restarts(s *slot, pod *corev1.Pod) {
	if s.steady {
		if now := w.podUnits(pod); fmt.Sprint(now) != fmt.Sprint(s.pids) {
			w.Errorf("steady pod %s: %v became %v\n%s", s.name, s.pids, now, describe(pod))
		}
	}
	if s.kind == "crashes" || s.excused {
		return
	}
	total := 0
	for _, status := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
		total += int(status.RestartCount)
	}
	if total > s.kills {
		w.Errorf("%s (%s): %d restarts, %d processes were killed\n%s", s.name, s.kind, total, s.kills, describe(pod))
	}
}

// oneUnitEach checks that the containers that run according to the API are those that do.
func (w *torture) oneUnitEach(node string, pods []corev1.Pod) {
	w.eventually(30*time.Second, func() string {
		units := w.units(node)
		for i := range pods {
			pod := &pods[i]
			if pod.Spec.NodeName != node {
				continue
			}
			count := 0
			for unit := range units {
				if strings.Contains(unit, string(pod.UID)) {
					count++
				}
			}
			now := w.podNow(pod)
			running := 0
			for _, status := range append(now.Status.InitContainerStatuses, now.Status.ContainerStatuses...) {
				if status.State.Running != nil {
					running++
				}
			}
			if count != running && !strings.HasPrefix(string(pod.Status.Phase), "Failed") {
				return fmt.Sprintf("%s: %d units run, the API says %d\n%s", pod.Name, count, running, describe(now))
			}
		}
		return ""
	})
}

// podNow reads a pod, or returns what it was if it is gone.
func (w *torture) podNow(pod *corev1.Pod) *corev1.Pod {
	now, err := w.c.Client.CoreV1().Pods(pod.Namespace).Get(w.Context(), pod.Name, metav1.GetOptions{})
	if err != nil {
		return pod
	}
	return now
}
