package podstatus

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

// owned are the conditions that this node writes; all others are kept as they are.
var owned = []corev1.PodConditionType{
	corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled,
	corev1.PodResizePending, corev1.PodResizeInProgress, corev1.AllContainersRestarting,
}

// Owned says whether this node writes the condition.
func Owned(t corev1.PodConditionType) bool { return slices.Contains(owned, t) }

// conditions keeps what others wrote and computes ours.
func conditions(pod *corev1.Pod, s corev1.PodStatus, in Input) []corev1.PodCondition {
	var out []corev1.PodCondition
	for _, c := range pod.Status.Conditions {
		if !Owned(c.Type) {
			out = append(out, c)
		}
	}
	containersReady := containersReady(pod, s)
	own := []corev1.PodCondition{
		{Type: corev1.PodReadyToStartContainers, Status: truth(in.SandboxReady)},
		initialized(pod, s),
		podReady(pod, out, containersReady),
		containersReady,
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
	}
	if failure := in.Decision.Failure; failure != nil && failure.Disrupts {
		out = slices.DeleteFunc(out, func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget })
		own = append(own, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonTerminationByKubelet, Message: failure.Message,
		})
	}
	if podplan.RestartsAll(pod) {
		own = append(own, restarting(s, in))
	}
	for _, c := range append(own, resizing(pod, in)...) {
		c.ObservedGeneration = pod.Generation
		out = append(out, withTime(c, pod.Status.Conditions, in))
	}
	return out
}

// restarting says whether all containers are being ended to be started again (KEP-5532); it is
// false again before the first is started.
func restarting(s corev1.PodStatus, in Input) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.AllContainersRestarting, Status: corev1.ConditionFalse}
	switch {
	case s.Phase == corev1.PodSucceeded:
		c.Reason = "PodCompleted"
	case s.Phase == corev1.PodFailed:
		c.Reason = "PodFailed"
	case in.Decision.Trigger != nil:
		c.Status, c.Reason, c.Message = corev1.ConditionTrue, "RestartAllContainersStarted", in.Decision.Trigger.String()
	}
	return c
}

// resizing are the conditions of a resize; there are none without one.
func resizing(pod *corev1.Pod, in Input) []corev1.PodCondition {
	var out []corev1.PodCondition
	if in.Decision.Ending {
		return nil
	}
	if in.ResizePending.Reason != "" {
		out = append(out, corev1.PodCondition{
			Type: corev1.PodResizePending, Status: corev1.ConditionTrue,
			Reason: in.ResizePending.Reason, Message: in.ResizePending.Message,
		})
	}
	if podplan.ResizeInProgress(pod, in.Observed) || in.ResizeError != "" {
		c := corev1.PodCondition{Type: corev1.PodResizeInProgress, Status: corev1.ConditionTrue, Message: in.ResizeError}
		if in.ResizeError != "" {
			c.Reason = corev1.PodReasonError
		}
		out = append(out, c)
	}
	return out
}

func truth(b bool) corev1.ConditionStatus {
	if b {
		return corev1.ConditionTrue
	}
	return corev1.ConditionFalse
}

// withTime keeps the time of the last transition while the status stays.
func withTime(c corev1.PodCondition, old []corev1.PodCondition, in Input) corev1.PodCondition {
	for _, o := range old {
		if o.Type == c.Type && o.Status == c.Status {
			c.LastTransitionTime, c.LastProbeTime = o.LastTransitionTime, o.LastProbeTime
			return c
		}
	}
	c.LastTransitionTime = metav1.NewTime(in.Observed.Now).Rfc3339Copy()
	return c
}

func initialized(pod *corev1.Pod, s corev1.PodStatus) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.PodInitialized, Status: corev1.ConditionTrue}
	if s.Phase == corev1.PodSucceeded {
		c.Reason = "PodCompleted"
		return c
	}
	if slices.ContainsFunc(s.ContainerStatuses, hasRun) {
		return c
	}
	var incomplete []string
	for _, ic := range podplan.Containers(pod) {
		cs := find(s.InitContainerStatuses, ic.Name)
		if ic.Role == podplan.RoleInit && !cs.Ready || ic.Role == podplan.RoleSidecar && (cs.Started == nil || !*cs.Started) {
			incomplete = append(incomplete, ic.Name)
		}
	}
	if len(incomplete) > 0 {
		c.Status, c.Reason = corev1.ConditionFalse, "ContainersNotInitialized"
		c.Message = fmt.Sprintf("containers with incomplete status: %s", incomplete)
	}
	return c
}

func containersReady(pod *corev1.Pod, s corev1.PodStatus) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.ContainersReady, Status: corev1.ConditionFalse}
	switch s.Phase {
	case corev1.PodSucceeded:
		c.Reason = "PodCompleted"
		return c
	case corev1.PodFailed:
		c.Reason = "PodFailed"
		return c
	}
	var unready []string
	for _, pc := range podplan.Containers(pod) {
		list := s.ContainerStatuses
		if pc.Role == podplan.RoleSidecar {
			list = s.InitContainerStatuses
		}
		if (pc.Role == podplan.RoleMain || pc.Role == podplan.RoleSidecar) && !find(list, pc.Name).Ready {
			unready = append(unready, pc.Name)
		}
	}
	if len(unready) > 0 {
		c.Reason, c.Message = "ContainersNotReady", fmt.Sprintf("containers with unready status: %s", unready)
		return c
	}
	c.Status = corev1.ConditionTrue
	return c
}

// podReady is ContainersReady and every readiness gate.
func podReady(pod *corev1.Pod, others []corev1.PodCondition, containers corev1.PodCondition) corev1.PodCondition {
	c := containers
	c.Type = corev1.PodReady
	if c.Status != corev1.ConditionTrue {
		return c
	}
	var missing []string
	for _, gate := range pod.Spec.ReadinessGates {
		at := slices.IndexFunc(others, func(o corev1.PodCondition) bool { return o.Type == gate.ConditionType })
		switch {
		case at < 0:
			missing = append(missing, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.ConditionType))
		case others[at].Status != corev1.ConditionTrue:
			missing = append(missing, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", gate.ConditionType, others[at].Status))
		}
	}
	if len(missing) > 0 {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, "ReadinessGatesNotReady", strings.Join(missing, ", ")
	}
	return c
}
