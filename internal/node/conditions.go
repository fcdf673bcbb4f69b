package node

import (
	"context"
	"fmt"
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

// pressures reads memory, disk and PIDs and compares them with the eviction thresholds.
func pressures(h Host) []corev1.NodeCondition {
	return []corev1.NodeCondition{memoryPressure(h), diskPressure(h), pidPressure(h)}
}

func memoryPressure(h Host) corev1.NodeCondition {
	available, known := h.Meminfo()["MemAvailable"]
	if known && available < evictMemory {
		return condition(corev1.NodeMemoryPressure, true, "KubeletHasInsufficientMemory",
			fmt.Sprintf("%d MiB of memory are available, the threshold is %d MiB", available>>20, evictMemory>>20))
	}
	return condition(corev1.NodeMemoryPressure, false, "KubeletHasSufficientMemory", "kubelet has sufficient memory available")
}

func diskPressure(h Host) corev1.NodeCondition {
	for _, fs := range []struct {
		name, dir     string
		bytes, inodes int64
	}{
		{"pods", h.Storage, evictNodeFSPart, evictNodeInodes},
		{"images", h.Images, evictImageFSPart, evictImagesInodes},
	} {
		have, err := Statfs(fs.dir)
		if err != nil {
			continue
		}
		if below(have.Available, have.Size, fs.bytes) || below(have.InodesFree, have.Inodes, fs.inodes) {
			return condition(corev1.NodeDiskPressure, true, "KubeletHasDiskPressure", fmt.Sprintf(
				"the file system of %s (%s) has less than %d %% of its space or %d %% of its inodes free", fs.name, fs.dir, fs.bytes, fs.inodes))
		}
	}
	return condition(corev1.NodeDiskPressure, false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure")
}

func pidPressure(h Host) corev1.NodeCondition {
	used, limit, known := h.Threads()
	if known && below(limit-used, limit, evictPIDs) {
		return condition(corev1.NodePIDPressure, true, "KubeletHasInsufficientPID",
			fmt.Sprintf("%d of %d process IDs are in use", used, limit))
	}
	return condition(corev1.NodePIDPressure, false, "KubeletHasSufficientPID", "kubelet has sufficient PID available")
}

// below says whether part is less than percent of whole; file systems without inodes have whole 0.
func below(part, whole, percent int64) bool {
	return whole > 0 && part < whole/100*percent
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
