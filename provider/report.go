package provider

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes"

	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/netns"
	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/provider/podstatus"
)

const (
	opStatus = "status"
	opDelete = "delete"
)

// report computes the pod's status and sends what differs from the API's. It says whether
// the API has the present status.
func (w *worker) report(pod *corev1.Pod, gone bool, obs podplan.Observed, d podplan.Decision, waiting map[string]podplan.Waiting, refused []podplan.Refusal) bool {
	in := podstatus.Input{
		Observed: obs, Decision: d, Waiting: waiting, StartTime: w.started,
		HostIPs: w.p.deps.HostIPs(),
	}
	if len(refused) > 0 && refused[0].Admission != "" {
		in.Refused = d.Failure
	}
	in.ResizePending, in.ResizeError = w.pending, w.resizeError
	in.SandboxReady, in.PodIPs = w.sandboxState(pod)
	in.SandboxReady = in.SandboxReady && obs.SandboxUp(pod)
	status := podstatus.Compute(pod, in)
	w.keepStatus(status)
	w.tellReadiness(pod, &status)
	w.mu.Lock()
	w.status, w.hasRun = status, true
	w.mu.Unlock()
	if gone || w.deleted() {
		return true
	}
	if w.soon(d, waiting, obs.Now) {
		return false
	}
	shown := w.shownAs(pod)
	if shown == nil || equality.Semantic.DeepEqual(shown.Status, normalize(status)) {
		return true
	}
	w.renew(opStatus)
	w.begin(opStatus, apiRetry, func(ctx context.Context) (any, error) { return nil, w.patch(ctx) })
	return false
}

// firstReport is how long a new pod's first status may wait for its start.
const firstReport = time.Second

// soon says whether a first container is about to be started: the report of that, which
// follows, says what there is to tell before. It halves what a start costs the API server. A
// pod that something holds up is reported at once.
func (w *worker) soon(d podplan.Decision, waiting map[string]podplan.Waiting, now time.Time) bool {
	if len(w.attempts) > 0 || d.Ending || len(waiting) > 0 {
		return false
	}
	at := w.started.Add(firstReport)
	if w.imminent || !now.Before(at) {
		return w.imminent
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wakeAt(at)
	return true
}

// tellReadiness lets this node's Services know at once, without the API's round trip.
func (w *worker) tellReadiness(pod *corev1.Pod, status *corev1.PodStatus) {
	if w.p.deps.Readiness == nil || pod.Spec.HostNetwork {
		return
	}
	var ips []netip.Addr
	for _, ip := range status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			ips = append(ips, a)
		}
	}
	if len(ips) == 0 {
		ips = w.toldIPs // given back meanwhile
	}
	w.toldIPs = ips
	ready := w.released || slices.ContainsFunc(status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
	w.p.deps.Readiness(ips, ready)
}

// deleted says that the object's deletion has been asked for: there is nothing to report to.
func (w *worker) deleted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	o := w.ops[opDelete]
	return o != nil && (o.running || o.done)
}

// sandboxState is whether namespaces and network are there now, and the address.
func (w *worker) sandboxState(pod *corev1.Pod) (ready bool, ips []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	network, shared := w.ops[opNetwork], w.ops[opSandbox]
	if !w.furnished && len(w.attempts) == 0 { // a kubelet makes the sandbox last, when volumes are there
		return false, nil
	}
	if w.released || network == nil || !network.done || shared == nil || !shared.done {
		return false, nil
	}
	address, _ := network.value.(netns.PodAddress)
	return true, podIPs(pod, address, w.p.deps.HostIPs())
}

// normalize rounds a status to what the API keeps: times to seconds, empty lists to none.
func normalize(s corev1.PodStatus) corev1.PodStatus {
	data, err := json.Marshal(s)
	if err != nil {
		return s
	}
	var out corev1.PodStatus
	if err := json.Unmarshal(data, &out); err != nil {
		return s
	}
	return out
}

// patch sends the newest status. The answer becomes the pod that the next difference is
// taken from, so a slow watch causes no second patch.
func (w *worker) patch(ctx context.Context) error {
	w.mu.Lock()
	pod, status := w.pod, w.status
	w.mu.Unlock()
	if pod = w.shownAs(pod); pod == nil {
		return nil
	}
	if isFinal(pod.Status.Phase) && !isFinal(status.Phase) {
		return nil
	}
	w.p.hook("status/before")
	defer w.p.hook("status/after")
	var answer *corev1.Pod
	err := w.p.timed("status", func() (err error) {
		answer, err = patchStatus(ctx, w.p.deps.Client, pod, status)
		return err
	})
	if err == nil && status.Phase == corev1.PodRunning {
		w.reached(untilReported)
	}
	w.endStart()
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		w.p.recheck(pod) // gone, or another pod of this name
		return nil
	case err != nil:
		w.log.Warn("Cannot patch the status of a pod", "err", err)
		return err
	}
	switch {
	case answer == nil:
	case isMirror(answer):
		w.setMirror(answer)
	default:
		w.set(answer)
	}
	return nil
}

func isFinal(p corev1.PodPhase) bool { return p == corev1.PodSucceeded || p == corev1.PodFailed }

// patchStatus sends the difference with a UID precondition; conditions of others are not
// part of it. It returns nil when nothing differs.
func patchStatus(ctx context.Context, client kubernetes.Interface, pod *corev1.Pod, status corev1.PodStatus) (*corev1.Pod, error) {
	before, err := json.Marshal(corev1.Pod{Status: pod.Status})
	if err != nil {
		return nil, fmt.Errorf("encode status of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	after, err := json.Marshal(corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: pod.UID}, Status: status})
	if err != nil {
		return nil, fmt.Errorf("encode status of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("compare status of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	if bytes.Equal(patch, fmt.Appendf(nil, `{"metadata":{"uid":%q}}`, pod.UID)) {
		return nil, nil
	}
	answer, err := client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		return nil, fmt.Errorf("patch status of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return answer, nil
}

// newer says whether a is at least as new as b, by resource version; versions that are no
// numbers cannot be compared, and then a wins.
func newer(a, b *corev1.Pod) bool {
	va, errA := strconv.ParseUint(a.ResourceVersion, 10, 64)
	vb, errB := strconv.ParseUint(b.ResourceVersion, 10, 64)
	return errA != nil || errB != nil || va >= vb
}

// Sizes of termination messages (pkg/kubelet/container/runtime.go).
const (
	maxMessage      = 4096
	maxMessageLog   = 2048
	maxMessageLines = 80
)

// terminationMessage reads what the container left, or the end of its log where asked for.
func (w *worker) terminationMessage(pod *corev1.Pod, c podplan.Container, number int, exit launchspec.Exit) string {
	if exit.StartError != nil {
		return exit.StartError.Message
	}
	message := readTail(w.terminationLog(c.Name, number), maxMessage)
	if message != "" || exit.ExitCode == 0 || c.TerminationMessagePolicy != corev1.TerminationMessageFallbackToLogsOnError {
		return message
	}
	path := w.p.deps.Layout.ContainerLog(pod.Namespace, pod.Name, string(w.uid), c.Name, number)
	tail, err := w.p.deps.Logs.Tail(path, maxMessageLines, maxMessageLog)
	if err != nil {
		w.log.Warn("Cannot read the log for a termination message", "container", c.Name, "err", err)
	}
	return tail
}

// readTail reads the end of a regular file; the container owns it and may have made
// anything of it, though not another file: it is bound by its inode.
func readTail(path string, limit int64) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return ""
	}
	data, err := io.ReadAll(io.NewSectionReader(file, max(info.Size()-limit, 0), limit))
	if err != nil {
		return ""
	}
	return string(bytes.ToValidUTF8(data, []byte("\uFFFD")))
}
