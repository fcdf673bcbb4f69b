package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/rig"
	"github.com/vk-metal/vk-metal/tests/workload"
)

// clients ask a Service from every node, as the node itself, by way of its service proxy.
type clients struct {
	address string
	stop    context.CancelFunc
	done    sync.WaitGroup

	mu sync.Mutex
	// fresh connections, how many of them could not be made, and how many were cut off
	// before the answer was there.
	fresh, refused, cut int
	// kept counts requests on connections that stay open, lost those that got no answer.
	kept, lost int
	reasons    map[string]int
}

// startClients starts some clients of new connections, and one that keeps its own, on each machine.
func (e *env) startClients(address string, perNode int) *clients {
	e.Helper()
	ctx, cancel := context.WithCancel(e.Context())
	c := &clients{address: address, stop: cancel, reasons: map[string]int{}}
	e.Cleanup(func() { cancel(); c.done.Wait() })
	for _, machine := range e.c.Machines() {
		for range perNode {
			e.inside(c, machine, func() { c.ask(ctx) })
		}
		e.inside(c, machine, func() { c.keep(ctx) })
	}
	return c
}

// inside runs a function on a thread in the machine's network namespace.
func (e *env) inside(c *clients, machine *rig.Machine, run func()) {
	e.Helper()
	leader, err := machine.Leader(e.Context())
	if err != nil {
		e.Fatal(err)
	}
	e.enter(&c.done, fmt.Sprintf("/proc/%d/ns/net", leader), run)
}

// enter runs a function on a thread in a network namespace; done waits for its end.
func (e *env) enter(done *sync.WaitGroup, path string, run func()) {
	e.Helper()
	entered := make(chan error, 1)
	done.Go(func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		ns, err := netns.GetFromPath(path)
		if err == nil {
			err = errors.Join(netns.Set(ns), ns.Close())
		}
		if entered <- err; err == nil {
			run()
		}
	})
	if err := <-entered; err != nil {
		e.Fatalf("enter the network namespace %s: %v", path, err)
	}
}

// ask makes a connection for each request until ctx ends.
func (c *clients) ask(ctx context.Context) {
	for ctx.Err() == nil {
		conn, err := dial(ctx, c.address)
		if err == nil {
			err = request(conn, "close")
			_ = conn.Close()
			c.count(&c.fresh, &c.cut, err)
			continue
		}
		if ctx.Err() == nil {
			c.count(&c.fresh, &c.refused, err)
		}
	}
}

// keep asks on one connection, and makes another when it breaks.
func (c *clients) keep(ctx context.Context) {
	for ctx.Err() == nil {
		conn, err := dial(ctx, c.address)
		if err != nil {
			continue // counted by the others
		}
		for ctx.Err() == nil && err == nil {
			err = request(conn, "keep-alive")
			c.count(&c.kept, &c.lost, err)
			time.Sleep(5 * time.Millisecond)
		}
		_ = conn.Close()
	}
}

// dial stays on its thread: one address, no race between families.
func dial(ctx context.Context, address string) (net.Conn, error) {
	return (&net.Dialer{FallbackDelay: -1, Timeout: 5 * time.Second}).DialContext(ctx, "tcp", address)
}

// request asks for the pod's name and reads the whole answer.
func request(conn net.Conn, connection string) error {
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := fmt.Fprintf(conn, "GET /hostname HTTP/1.1\r\nHost: web\r\nConnection: %s\r\n\r\n", connection); err != nil {
		return err
	}
	if connection == "close" {
		answer, err := io.ReadAll(conn)
		if err == nil && !strings.HasPrefix(string(answer), "HTTP/1.1 200") {
			err = fmt.Errorf("answer %.20q", answer)
		}
		return err
	}
	answer := make([]byte, 4096)
	n, err := conn.Read(answer) // it is short and comes as one segment
	if err == nil && !strings.HasPrefix(string(answer[:n]), "HTTP/1.1 200") {
		err = fmt.Errorf("answer %.20q", answer[:n])
	}
	return err
}

func (c *clients) count(all, failed *int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*all++
	if err != nil {
		*failed++
		c.reasons[err.Error()]++
	}
}

// end stops the clients and says what they saw.
func (c *clients) end() string {
	c.stop()
	c.done.Wait()
	text := fmt.Sprintf("%d new connections, %d refused, %d cut off; %d requests on kept connections, %d unanswered",
		c.fresh, c.refused, c.cut, c.kept, c.lost)
	for _, reason := range slices.Sorted(maps.Keys(c.reasons)) {
		text += fmt.Sprintf("\n  %d × %s", c.reasons[reason], reason)
	}
	return text
}

func (c *clients) seen() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fresh
}

// TestHandover replaces the pods of a Service whose server exits at once on SIGTERM, by
// rolling updates and by drains, while both nodes make new connections: none may fail.
// VK_METAL_HANDOVER=n goes on for n connections, and then does the same without the hold.
func TestHandover(t *testing.T) {
	e := setup(t)
	wanted := 0
	if text := os.Getenv("VK_METAL_HANDOVER"); text != "" {
		if _, err := fmt.Sscan(text, &wanted); err != nil {
			t.Fatal(err)
		}
	}
	e.deploy(6, exitsAtOnce("0"))
	service := e.service("web")
	address := net.JoinHostPort(service.Spec.ClusterIP, "80")
	e.eventually(time.Minute, func() string { return e.answers(address) })
	c := e.handOver(address, wanted)
	t.Log("held: " + c.end())
	if c.refused+c.cut > 0 || c.fresh < wanted {
		t.Errorf("%d of %d new connections failed, want none of at least %d", c.refused+c.cut, c.fresh, wanted)
	}
	if wanted == 0 {
		return
	}
	for _, machine := range e.c.Machines() {
		e.withoutHold(machine.Name)
	}
	c = e.handOver(address, wanted)
	t.Log("not held: " + c.end())
	if c.refused+c.cut == 0 {
		t.Error("no connection failed without the hold: this test finds nothing")
	}
}

// answers is empty once every node reaches the address.
func (e *env) answers(address string) string {
	for _, machine := range e.c.Machines() {
		if _, err := machine.Run(e.Context(), "bash", "-c", "exec 3<>/dev/tcp/"+strings.Replace(address, ":", "/", 1)); err != nil {
			return err.Error()
		}
	}
	return ""
}

// exitsAtOnce changes the Deployment's pods: no delay after SIGTERM, on any node.
func exitsAtOnce(version string) func(*corev1.PodSpec) {
	return func(spec *corev1.PodSpec) {
		spec.TopologySpreadConstraints[0].WhenUnsatisfiable = corev1.ScheduleAnyway
		spec.Containers[0].Args = []string{"netexec", fmt.Sprintf("--http-port=%d", workload.Port)}
		spec.Containers[0].Env = []corev1.EnvVar{{Name: "VERSION", Value: version}}
	}
}

// handOver replaces all pods in turn, each way once at least, until the clients have made
// enough connections.
func (e *env) handOver(address string, enough int) *clients {
	e.Helper()
	c := e.startClients(address, 3)
	for round := 1; ; round++ {
		begun := time.Now()
		e.deploy(6, exitsAtOnce(time.Now().String()))
		e.drain(e.c.Machines()[round%2].Name)
		e.Logf("round %d: rolling update and drain in %s, %d connections", round, time.Since(begun).Round(time.Millisecond), c.seen())
		if c.seen() >= enough {
			return c
		}
	}
}

// drain evicts the Deployment's pods from a node, as kubectl drain does, and waits for
// others in their place.
func (e *env) drain(node string) {
	e.Helper()
	e.cordon(node, true)
	defer e.cordon(node, false)
	for _, pod := range e.web() {
		if pod.Spec.NodeName != node || pod.DeletionTimestamp != nil {
			continue
		}
		err := e.c.Client.PolicyV1().Evictions(e.ns).Evict(e.Context(), &policyv1.Eviction{
			ObjectMeta: metav1.ObjectMeta{Name: pod.Name, Namespace: e.ns},
		})
		if err != nil {
			e.Fatalf("evict %s: %v", pod.Name, err)
		}
	}
	ctx, cancel := context.WithTimeout(e.Context(), 2*time.Minute)
	defer cancel()
	if err := workload.WaitRolledOut(ctx, e.c.Client, e.ns, "web"); err != nil {
		e.Fatal(err)
	}
}

func (e *env) cordon(node string, unschedulable bool) {
	e.Helper()
	patch := fmt.Sprintf(`{"spec":{"unschedulable":%t}}`, unschedulable)
	_, err := e.c.Client.CoreV1().Nodes().Patch(context.WithoutCancel(e.Context()), node, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		e.Errorf("cordon %s: %v", node, err)
	}
}

// withoutHold turns the hold off on a node until the test ends.
func (e *env) withoutHold(node string) {
	e.Helper()
	e.configure(node, "stopHold: {enabled: false}")
}

// configure sets keys of a node's configuration and restarts its agent; the test's end
// undoes both.
func (e *env) configure(node, lines string) {
	e.Helper()
	const file, kept = "/etc/vk-metal/config.yaml", "/etc/vk-metal/config.yaml.kept"
	machine := e.machine(node)
	e.Cleanup(func() {
		script := "if [ -e " + kept + " ]; then mv " + kept + " " + file + " && systemctl restart vk-metal.service; fi"
		ctx, cancel := context.WithTimeout(context.Background(), endTime/2)
		defer cancel()
		if _, err := machine.Run(ctx, "sh", "-c", script); err != nil {
			e.Errorf("put the configuration back: %v", err)
		}
	})
	replaced := "" // keys that are there already
	for line := range strings.Lines(lines) {
		if key, _, ok := strings.Cut(line, ":"); ok && !strings.HasPrefix(line, " ") {
			replaced += " -e '/^" + key + ":/d'"
		}
	}
	e.on(node, "sh", "-c", fmt.Sprintf("[ -e %[2]s ] || cp -p %[1]s %[2]s; cp -p %[2]s %[1]s && sed -i %[3]s %[1]s && printf '%%s\\n' '%[4]s' >>%[1]s && systemctl restart vk-metal.service",
		file, kept, replaced, lines))
}

// TestHeldPodIsAlive deletes a pod that a slice goes on offering: until that ends its
// container runs, is ready and can be entered.
func TestHeldPodIsAlive(t *testing.T) {
	e := setup(t)
	pod := e.busybox("held", fmt.Sprintf("trap 'exit 0' TERM; httpd -p %d; while :; do sleep 0.1; done", workload.Port))
	pod.Spec.TerminationGracePeriodSeconds = ptr.To(int64(180)) // it is held for a part of that
	e.create(pod)
	pod = e.waitPod("held", podTimeout, running)
	service := e.service("by-hand", func(s *corev1.ServiceSpec) { s.Selector = nil })
	slices := e.c.Client.DiscoveryV1().EndpointSlices(e.ns)
	slice, err := slices.Create(e.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "by-hand", Labels: map[string]string{discoveryv1.LabelServiceName: service.Name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To(""), Port: ptr.To(int32(workload.Port))}},
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{pod.Status.PodIP}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
			NodeName: &pod.Spec.NodeName, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: e.ns, Name: pod.Name, UID: pod.UID},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// Once the node's service proxy has the slice, so has the hold: they share the watch.
	e.eventually(time.Minute, func() string { return e.answers(net.JoinHostPort(service.Spec.ClusterIP, "80")) })
	if err := e.c.Client.CoreV1().Pods(e.ns).Delete(e.Context(), pod.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	e.waitEvent(pod, "StopHeld")
	if out := e.exec(pod, "echo", "alive"); out != "alive\n" {
		t.Errorf("exec said %q", out)
	}
	if now := e.pod(pod.Name); now.DeletionTimestamp == nil || running(now) != "" {
		t.Errorf("a held pod is not as before:\n%s", describe(now))
	}
	slice.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: ptr.To(false), Terminating: ptr.To(true)}
	if _, err := slices.Update(e.Context(), slice, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	e.waitGone(pod.Name, time.Minute)
	t.Logf("gone %s after it was withdrawn", time.Since(begun).Round(time.Millisecond))
}

// waitEvent waits for an event of the pod.
func (e *env) waitEvent(pod *corev1.Pod, reason string) {
	e.Helper()
	e.eventually(time.Minute, func() string {
		list, err := e.c.Client.CoreV1().Events(e.ns).List(e.Context(), metav1.ListOptions{
			FieldSelector: fields.Set{"involvedObject.uid": string(pod.UID), "reason": reason}.String(),
		})
		if err != nil {
			return err.Error()
		}
		if len(list.Items) == 0 {
			return "no event " + reason
		}
		return ""
	})
}
