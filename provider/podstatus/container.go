package podstatus

import (
	"fmt"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

// ContainerID names one attempt in the API: the pod's UID, container and attempt.
func ContainerID(uid, container string, attempt int) string {
	return fmt.Sprintf("%s%s/%s/%d", ContainerIDPrefix, uid, container, attempt)
}

// containers fills in the three lists of container statuses.
func containers(s *corev1.PodStatus, pod *corev1.Pod, in Input) {
	for _, c := range podplan.Containers(pod) {
		status := container(pod, c, in)
		switch c.Role {
		case podplan.RoleInit, podplan.RoleSidecar:
			s.InitContainerStatuses = append(s.InitContainerStatuses, status)
		case podplan.RoleEphemeral:
			s.EphemeralContainerStatuses = append(s.EphemeralContainerStatuses, status)
		default:
			s.ContainerStatuses = append(s.ContainerStatuses, status)
		}
	}
}

func container(pod *corev1.Pod, c podplan.Container, in Input) corev1.ContainerStatus {
	status := corev1.ContainerStatus{Name: c.Name, Image: c.Image, VolumeMounts: volumeMounts(c)}
	if requests := c.Resources.Requests; len(requests) > 0 {
		status.AllocatedResources = requests.DeepCopy()
	}
	if c.Role != podplan.RoleEphemeral {
		status.Resources = c.Resources.DeepCopy()
	}
	attempts := begun(in.Observed.Attempts[c.Name])
	if len(attempts) == 0 {
		neverStarted(&status, pod, c, in)
		return status
	}
	last := attempts[len(attempts)-1]
	status.RestartCount = int32(last.Number)
	status.ContainerID = ContainerID(string(pod.UID), c.Name, last.Number)
	if last.Image != "" {
		status.Image = last.Image
	}
	status.ImageID = last.ImageID
	if last.User != nil {
		status.User = &corev1.ContainerUser{Linux: last.User}
	}
	if c.Lifecycle != nil { // only where the API server knows the field (ContainerStopSignals, alpha)
		status.StopSignal = c.Lifecycle.StopSignal
	}
	if len(attempts) > 1 {
		status.LastTerminationState = terminated(pod, c, attempts[len(attempts)-2])
	}
	current(&status, pod, c, last, in)
	if status.State.Running != nil && last.Resources != nil && status.Resources != nil {
		status.Resources.Requests, status.Resources.Limits = last.Resources.Requests, last.Resources.Limits
	}
	if started := status.State.Running != nil && last.Started; c.Role != podplan.RoleEphemeral {
		status.Started = &started
	}
	status.Ready = ready(c, status, last) && (c.Role != podplan.RoleInit || !in.Observed.Stale(pod, last))
	return status
}

// begun leaves out the attempts of which no process was ever made.
func begun(attempts []podplan.Attempt) []podplan.Attempt {
	if n := len(attempts); n > 0 && attempts[n-1].Phase == podplan.Prepared {
		return attempts[:n-1]
	}
	return attempts
}

// current sets the state of a container that was started at least once.
func current(status *corev1.ContainerStatus, pod *corev1.Pod, c podplan.Container, last podplan.Attempt, in Input) {
	if last.Phase == podplan.Running {
		if last.PostStart == podplan.HookRunning && last.Number == 0 && !in.Decision.Ending {
			status.State.Waiting = defaultWaiting(pod)
			return
		}
		status.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(last.StartedAt)}
		return
	}
	status.State = terminated(pod, c, last)
	if in.Decision.Ending {
		return
	}
	if waiting, ok := waitingFor(c, in); ok {
		status.LastTerminationState = status.State
		status.State = corev1.ContainerState{Waiting: waiting}
	}
}

func waitingFor(c podplan.Container, in Input) (*corev1.ContainerStateWaiting, bool) {
	for _, source := range []map[string]podplan.Waiting{in.Waiting, in.Decision.Waiting} {
		if w, ok := source[c.Name]; ok {
			return &corev1.ContainerStateWaiting{Reason: w.Reason, Message: w.Message}, true
		}
	}
	return nil, false
}

func defaultWaiting(pod *corev1.Pod) *corev1.ContainerStateWaiting {
	if len(pod.Spec.InitContainers) > 0 {
		return &corev1.ContainerStateWaiting{Reason: "PodInitializing"}
	}
	return &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}
}

// neverStarted is the state of a container without an attempt on this node.
func neverStarted(status *corev1.ContainerStatus, pod *corev1.Pod, c podplan.Container, in Input) {
	if no := false; c.Role != podplan.RoleEphemeral {
		status.Started = &no
	}
	if old, ok := oldStatus(pod, c.Name); ok && old.State.Terminated != nil {
		*status = old // it ended before, and nothing is left of it here
		status.Ready = c.Role == podplan.RoleInit && old.State.Terminated.ExitCode == 0
		return
	}
	if in.Decision.Done && pod.DeletionTimestamp != nil && mayHaveRun(pod, c, in) {
		status.State.Terminated = &corev1.ContainerStateTerminated{
			Reason: "ContainerStatusUnknown", ExitCode: 137,
			Message: "The container could not be located when the pod was terminated",
		}
		return
	}
	status.State.Waiting = defaultWaiting(pod)
	if waiting, ok := waitingFor(c, in); ok {
		status.State.Waiting = waiting
	}
}

// mayHaveRun says whether it was the container's turn to run when its pod came to its end
// (pkg/kubelet/status, hasPodInitialized and initializedContainers): a main container's
// once the init containers had done their part, else the first init container's.
func mayHaveRun(pod *corev1.Pod, c podplan.Container, in Input) bool {
	inits := pod.Spec.InitContainers
	switch {
	case c.Role == podplan.RoleInit || c.Role == podplan.RoleSidecar:
		return inits[0].Name == c.Name
	case len(inits) == 0:
		return true
	}
	for _, main := range pod.Spec.Containers {
		if len(begun(in.Observed.Attempts[main.Name])) > 0 {
			return true
		}
	}
	last, _ := podplan.Find(pod, inits[len(inits)-1].Name)
	attempts := begun(in.Observed.Attempts[last.Name])
	if len(attempts) == 0 {
		return false
	}
	end := attempts[len(attempts)-1]
	return last.Role == podplan.RoleSidecar && end.Started || end.Phase == podplan.Ended && !end.Failed()
}

func oldStatus(pod *corev1.Pod, name string) (corev1.ContainerStatus, bool) {
	for _, list := range [][]corev1.ContainerStatus{
		pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses,
	} {
		for _, cs := range list {
			if cs.Name == name {
				return *cs.DeepCopy(), true
			}
		}
	}
	return corev1.ContainerStatus{}, false
}

func terminated(pod *corev1.Pod, c podplan.Container, a podplan.Attempt) corev1.ContainerState {
	return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		ExitCode: int32(a.ExitCode), Reason: endReason(a), Message: cut(a.Message, maxMessages/len(podplan.Containers(pod))),
		StartedAt: metav1.NewTime(a.StartedAt), FinishedAt: metav1.NewTime(a.FinishedAt),
		ContainerID: ContainerID(string(pod.UID), c.Name, a.Number),
	}}
}

// maxMessages is how many bytes the messages of a pod's containers may have together; each has
// its share (pkg/kubelet/container/runtime.go, MaxPodTerminationMessageLogLength).
const maxMessages = 12 << 10

// cut shortens a text to n bytes at most, and no character to a part of it.
func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}

func endReason(a podplan.Attempt) string {
	switch {
	case a.Reason != "":
		return a.Reason
	case a.OOMKilled:
		return "OOMKilled"
	case a.ExitCode == 0:
		return "Completed"
	}
	return "Error"
}

// ready is a running container's readiness, or that an init container has done its work.
func ready(c podplan.Container, status corev1.ContainerStatus, last podplan.Attempt) bool {
	switch c.Role {
	case podplan.RoleInit:
		return last.Phase == podplan.Ended && last.ExitCode == 0
	case podplan.RoleEphemeral:
		return false
	}
	return status.State.Running != nil && last.Ready
}

func volumeMounts(c podplan.Container) []corev1.VolumeMountStatus {
	var out []corev1.VolumeMountStatus
	for _, vm := range c.VolumeMounts {
		status := corev1.VolumeMountStatus{Name: vm.Name, MountPath: vm.MountPath, ReadOnly: vm.ReadOnly}
		if vm.ReadOnly {
			mode := corev1.RecursiveReadOnlyDisabled
			if podplan.ReadOnlyBelow(vm) {
				mode = corev1.RecursiveReadOnlyEnabled
			}
			status.RecursiveReadOnly = &mode
		}
		out = append(out, status)
	}
	return out
}
