package node

import (
	"context"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Check is one thing that must hold for the node to be Ready.
type Check struct {
	// Name opens the message when it fails: "systemd", "pod network", "log writer". Without
	// one the error is the message.
	Name string
	// Run returns why not; it is given checkTimeout.
	Run func(ctx context.Context) error
}

const checkTimeout = 5 * time.Second

// ready runs all checks and makes the Ready condition of them.
func ready(ctx context.Context, checks []Check) corev1.NodeCondition {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var failed []string
	for _, check := range checks {
		if err := check.Run(ctx); err != nil {
			failed = append(failed, strings.TrimPrefix(check.Name+" not ready: ", " not ready: ")+err.Error())
		}
	}
	if len(failed) > 0 {
		return condition(corev1.NodeReady, false, "KubeletNotReady", strings.Join(failed, "; "))
	}
	return condition(corev1.NodeReady, true, "KubeletReady", "kubelet is posting ready status")
}

// pressureWords are a kubelet's reason and message for True and for False
// (pkg/kubelet/nodestatus).
var pressureWords = []struct {
	kind    corev1.NodeConditionType
	yes, no [2]string
}{
	{
		corev1.NodeMemoryPressure,
		[2]string{"KubeletHasInsufficientMemory", "kubelet has insufficient memory available"},
		[2]string{"KubeletHasSufficientMemory", "kubelet has sufficient memory available"},
	},
	{
		corev1.NodeDiskPressure,
		[2]string{"KubeletHasDiskPressure", "kubelet has disk pressure"},
		[2]string{"KubeletHasNoDiskPressure", "kubelet has no disk pressure"},
	},
	{
		corev1.NodePIDPressure,
		[2]string{"KubeletHasInsufficientPID", "kubelet has insufficient PID available"},
		[2]string{"KubeletHasSufficientPID", "kubelet has sufficient PID available"},
	},
}

// pressures makes the conditions of what the server is short of.
func pressures(hold []corev1.NodeConditionType) []corev1.NodeCondition {
	var list []corev1.NodeCondition
	for _, w := range pressureWords {
		holds, words := slices.Contains(hold, w.kind), w.no
		if holds {
			words = w.yes
		}
		list = append(list, condition(w.kind, holds, words[0], words[1]))
	}
	return list
}

func condition(kind corev1.NodeConditionType, holds bool, reason, message string) corev1.NodeCondition {
	status := corev1.ConditionFalse
	if holds {
		status = corev1.ConditionTrue
	}
	return corev1.NodeCondition{Type: kind, Status: status, Reason: reason, Message: message}
}

// keepTransitions gives each condition the transition time of the one before, or now when
// its status changed.
func keepTransitions(now metav1.Time, before, after []corev1.NodeCondition) {
	for i := range after {
		after[i].LastTransitionTime = now
		after[i].LastHeartbeatTime = now
		for _, old := range before {
			if old.Type == after[i].Type && old.Status == after[i].Status && !old.LastTransitionTime.IsZero() {
				after[i].LastTransitionTime = old.LastTransitionTime
			}
		}
	}
}
