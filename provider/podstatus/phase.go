package podstatus

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

// tally counts containers by what they mean for the phase (the kubelet's getPhase).
type tally struct {
	pendingInit, failedInit                int
	pendingSidecars                        int
	running, waiting, stopped, stoppedGood int
	stoppedForGood                         int
}

// phase computes the pod's phase; ended says that nothing runs nor will.
func phase(pod *corev1.Pod, s corev1.PodStatus, ended bool) corev1.PodPhase {
	var t tally
	for _, c := range podplan.Containers(pod) {
		switch c.Role {
		case podplan.RoleInit:
			t.init(pod, c, find(s.InitContainerStatuses, c.Name))
		case podplan.RoleSidecar:
			t.sidecar(find(s.InitContainerStatuses, c.Name))
		case podplan.RoleMain:
			t.main(pod, c, find(s.ContainerStatuses, c.Name))
		}
	}
	initialized := false
	for _, cs := range s.ContainerStatuses {
		initialized = initialized || cs.State.Running != nil
	}
	return t.phase(ended, initialized)
}

func find(list []corev1.ContainerStatus, name string) corev1.ContainerStatus {
	for _, cs := range list {
		if cs.Name == name {
			return cs
		}
	}
	return corev1.ContainerStatus{}
}

func (t tally) phase(ended, initialized bool) corev1.PodPhase {
	switch {
	case t.failedInit > 0:
		return corev1.PodFailed
	case t.pendingInit > 0, t.pendingSidecars > 0 && !initialized, t.waiting > 0:
		return corev1.PodPending
	case t.running > 0:
		return corev1.PodRunning
	case t.stopped == 0:
		return corev1.PodPending
	case !ended && t.stopped != t.stoppedForGood:
		return corev1.PodRunning // in the process of restarting
	case t.stopped == t.stoppedGood:
		return corev1.PodSucceeded
	}
	return corev1.PodFailed
}

func (t *tally) init(pod *corev1.Pod, c podplan.Container, cs corev1.ContainerStatus) {
	end := cs.State.Terminated
	if cs.State.Waiting != nil {
		end = cs.LastTerminationState.Terminated
	}
	switch {
	case end == nil, restartingAll(cs):
		t.pendingInit++
	case end.ExitCode != 0 && !podplan.Restarts(pod, c, int(end.ExitCode)):
		t.failedInit++
	case end.ExitCode != 0:
		t.pendingInit++
	case cs.State.Waiting != nil:
		t.pendingInit++ // it runs once more, after a reboot
	}
}

func (t *tally) sidecar(cs corev1.ContainerStatus) {
	switch {
	case cs.State.Running != nil:
		if cs.Started == nil || !*cs.Started {
			t.pendingSidecars++
		}
		t.running++
	case cs.State.Waiting != nil && cs.LastTerminationState.Terminated == nil:
		t.pendingSidecars++
		t.waiting++
	}
}

func (t *tally) main(pod *corev1.Pod, c podplan.Container, cs corev1.ContainerStatus) {
	end := cs.State.Terminated
	if cs.State.Waiting != nil {
		end = cs.LastTerminationState.Terminated
	}
	switch {
	case cs.State.Running != nil:
		t.running++
	case end == nil:
		t.waiting++
	default:
		t.stopped++
		if end.ExitCode == 0 {
			t.stoppedGood++
		}
		if !restartingAll(cs) && !podplan.Restarts(pod, c, int(end.ExitCode)) {
			t.stoppedForGood++
		}
	}
}

// restartingAll says that the container is started again whatever its end was like.
func restartingAll(cs corev1.ContainerStatus) bool {
	return cs.State.Waiting != nil && cs.State.Waiting.Reason == podplan.RestartingAll
}
