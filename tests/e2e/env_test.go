package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/cluster/controlplane"
	"github.com/vk-metal/vk-metal/tests/registry"
	"github.com/vk-metal/vk-metal/tests/rig"
	"github.com/vk-metal/vk-metal/tests/workload"
)

// env is one test's namespace in the shared cluster.
type env struct {
	*testing.T
	c   *cluster.Cluster
	ns  string
	ctx context.Context
}

// Context ends with the test, or with the time that the test has (see boundContext):
// whatever a test waits for, it waits with this.
func (e *env) Context() context.Context { return e.ctx }

// setup skips without a cluster, and makes a namespace that goes with the test. A test
// that fails leaves the cluster's logs.
func setup(t *testing.T) *env {
	t.Helper()
	return setupFor(t, timeOf())
}

// setupMore is setup for the tests that CI leaves out, because they take long or need more
// than its cluster has: make e2e-more runs them as well.
func setupMore(t *testing.T) *env {
	t.Helper()
	if shared != nil && os.Getenv(moreTests) == "" {
		t.Skip("left out by CI: set " + moreTests + "=1 (make e2e-more)")
	}
	return setup(t)
}

// moreTests turns them on; the cluster then has two API servers, with restartGates.
const moreTests = "VK_METAL_E2E_MORE"

// setupFor is setup for a test that may take as long as limit.
func setupFor(t *testing.T, limit time.Duration) *env {
	t.Helper()
	if shared == nil {
		t.Skip("boots a cluster: set VK_METAL_E2E=1")
	}
	ctx, end := boundContext(t, limit)
	t.Cleanup(end)
	namespace, err := shared.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e := &env{T: t, c: shared, ns: namespace.Name, ctx: ctx}
	t.Cleanup(e.end)
	if err := controlplane.WaitServiceAccount(ctx, e.c.Client, e.ns); err != nil {
		t.Fatal(err)
	}
	return e
}

// in is the same namespace for a subtest.
func (e *env) in(t *testing.T) *env { return &env{T: t, c: e.c, ns: e.ns, ctx: e.ctx} }

// end leaves logs and takes the namespace away, which must work: it takes every pod
// with it.
func (e *env) end() {
	ctx, cancel := context.WithTimeout(context.Background(), endTime/2)
	defer cancel()
	if e.Failed() {
		dir := folder(e.Name())
		err := e.c.CollectLogs(ctx, dir)
		e.Logf("logs are in %s (%v)", dir, err)
	}
	err := e.c.Client.CoreV1().Namespaces().Delete(ctx, e.ns, metav1.DeleteOptions{})
	if err != nil {
		e.Errorf("delete namespace: %v", err)
		return
	}
	for {
		_, err := e.c.Client.CoreV1().Namespaces().Get(ctx, e.ns, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return
		}
		select {
		case <-ctx.Done():
			e.Errorf("namespace %s does not go: %v", e.ns, err)
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// busybox is a pod of one container that runs a shell script.
func (e *env) busybox(name, script string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: e.ns},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: ptr.To(int64(2)),
			Containers: []corev1.Container{{
				Name: "main", Image: registry.Busybox, Command: []string{"sh", "-c", script},
			}},
		},
	}
}

// create makes the pod.
func (e *env) create(pod *corev1.Pod) *corev1.Pod {
	e.Helper()
	created, err := e.c.Client.CoreV1().Pods(e.ns).Create(e.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		e.Fatal(err)
	}
	return created
}

// pod reads the pod as it is.
func (e *env) pod(name string) *corev1.Pod {
	e.Helper()
	pod, err := e.c.Client.CoreV1().Pods(e.ns).Get(e.Context(), name, metav1.GetOptions{})
	if err != nil {
		e.Fatal(err)
	}
	return pod
}

// waitPod watches the pod until what says "" for it; what names what is missing.
func (e *env) waitPod(name string, timeout time.Duration, what func(*corev1.Pod) string) *corev1.Pod {
	e.Helper()
	ctx, cancel := context.WithTimeout(e.Context(), timeout)
	defer cancel()
	pod, missing, err := workload.WaitPod(ctx, e.c.Client, e.ns, name, what)
	if err != nil {
		e.Fatalf("pod %s: %s: %v\n%s", name, missing, err, describe(pod))
	}
	return pod
}

// running is a what for waitPod: every container runs and the pod is Ready.
func running(pod *corev1.Pod) string {
	if pod.Status.Phase != corev1.PodRunning {
		return fmt.Sprintf("phase is %s", pod.Status.Phase)
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
			return ""
		}
	}
	return "not Ready"
}

// phase is a what for waitPod.
func phase(want corev1.PodPhase) func(*corev1.Pod) string {
	return func(pod *corev1.Pod) string {
		if pod.Status.Phase == want {
			return ""
		}
		return fmt.Sprintf("phase is %s, want %s", pod.Status.Phase, want)
	}
}

// restarted is a what for waitPod: the first container runs again, at least for the
// n-th time after the first.
func restarted(n int32) func(*corev1.Pod) string {
	return func(pod *corev1.Pod) string {
		if len(pod.Status.ContainerStatuses) == 0 {
			return "no container status"
		}
		status := pod.Status.ContainerStatuses[0]
		if status.RestartCount < n || status.State.Running == nil {
			return fmt.Sprintf("restarts %d, want %d; state %+v", status.RestartCount, n, status.State)
		}
		return running(pod)
	}
}

// waiting is a what for waitPod: the first container waits for one of the reasons.
func waiting(reasons ...string) func(*corev1.Pod) string {
	return func(pod *corev1.Pod) string {
		got := "nothing"
		for _, status := range pod.Status.ContainerStatuses {
			if status.State.Waiting == nil {
				continue
			}
			got = status.State.Waiting.Reason
			for _, reason := range reasons {
				if got == reason {
					return ""
				}
			}
		}
		return fmt.Sprintf("waits for %s, want %v", got, reasons)
	}
}

func describe(pod *corev1.Pod) string {
	if pod == nil {
		return "no such pod"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "phase %s, reason %q, message %q, node %s\n", pod.Status.Phase, pod.Status.Reason, pod.Status.Message, pod.Spec.NodeName)
	for _, condition := range pod.Status.Conditions {
		fmt.Fprintf(&b, "  %s=%s %s %s\n", condition.Type, condition.Status, condition.Reason, condition.Message)
	}
	for _, status := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
		fmt.Fprintf(&b, "  %s ready=%t restarts=%d waiting=%+v running=%+v terminated=%+v\n", status.Name, status.Ready,
			status.RestartCount, status.State.Waiting, status.State.Running, status.State.Terminated)
	}
	return b.String()
}

// exec runs a command in the pod's first container.
func (e *env) exec(pod *corev1.Pod, argv ...string) string {
	e.Helper()
	stdout, stderr, err := workload.Exec(e.Context(), e.c.Config, pod, "", nil, argv...)
	if err != nil {
		e.Fatalf("exec %v: %v: %s", argv, err, stderr)
	}
	return stdout
}

// logs reads the container's log.
func (e *env) logs(pod string, options *corev1.PodLogOptions) string {
	e.Helper()
	data, err := e.c.Client.CoreV1().Pods(e.ns).GetLogs(pod, options).DoRaw(e.Context())
	if err != nil {
		e.Fatalf("logs of %s: %v", pod, err)
	}
	return string(data)
}

// waitLog waits until the log of a running pod's container "main" is want: a process
// may write later than it is Running.
func (e *env) waitLog(pod, want string) {
	e.Helper()
	e.eventually(time.Minute, func() string {
		if got := e.logs(pod, &corev1.PodLogOptions{Container: "main"}); got != want {
			return fmt.Sprintf("log is %q, want %q", got, want)
		}
		return ""
	})
}

// eventually asks what is missing until nothing is.
func (e *env) eventually(timeout time.Duration, missing func() string) {
	e.Helper()
	deadline := time.Now().Add(timeout)
	for {
		why := missing()
		if why == "" {
			return
		}
		if time.Now().After(deadline) {
			e.Errorf("after %s: %s", timeout, why)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// remove deletes the pod, waits until it is gone and says how long it took.
func (e *env) remove(name string, timeout time.Duration) time.Duration {
	e.Helper()
	start := time.Now()
	if err := e.c.Client.CoreV1().Pods(e.ns).Delete(e.Context(), name, metav1.DeleteOptions{}); err != nil {
		e.Fatal(err)
	}
	for {
		_, err := e.c.Client.CoreV1().Pods(e.ns).Get(e.Context(), name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return time.Since(start)
		}
		if time.Since(start) > timeout {
			e.Fatalf("pod %s is not gone after %s (%v)\n%s", name, timeout, err, describe(e.pod(name)))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// machine is the machine that the pod runs on.
func (e *env) machine(node string) *rig.Machine {
	e.Helper()
	machine, err := e.c.Rig.Machine(node)
	if err != nil {
		e.Fatal(err)
	}
	return machine
}

// on runs a command on a machine.
func (e *env) on(node string, argv ...string) string {
	e.Helper()
	out, err := e.machine(node).Run(e.Context(), argv...)
	if err != nil {
		e.Fatal(err)
	}
	return out
}

// units maps the containers' units on the node to their main process.
func (e *env) units(node string) map[string]string {
	e.Helper()
	units := map[string]string{}
	out := e.on(node, "systemctl", "show", "--state=running", "--property=Id,MainPID", "vkm-*.service")
	for block := range strings.SplitSeq(out, "\n\n") {
		fields := map[string]string{}
		for line := range strings.Lines(block) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			fields[key] = value
		}
		if fields["MainPID"] != "" && fields["MainPID"] != "0" {
			units[fields["Id"]] = fields["MainPID"]
		}
	}
	return units
}

// podUnits are the units of one pod.
func (e *env) podUnits(pod *corev1.Pod) map[string]string {
	e.Helper()
	own := map[string]string{}
	for unit, pid := range e.units(pod.Spec.NodeName) {
		if strings.Contains(unit, string(pod.UID)) {
			own[unit] = pid
		}
	}
	return own
}

// killMain sends SIGKILL to the pod's processes, as a crash would look.
func (e *env) killMain(pod *corev1.Pod) {
	e.Helper()
	units := e.podUnits(pod)
	if len(units) == 0 {
		e.Fatalf("pod %s has no unit on %s", pod.Name, pod.Spec.NodeName)
	}
	for _, pid := range units {
		e.on(pod.Spec.NodeName, "bash", "-c", "kill -9 "+pid)
	}
}
