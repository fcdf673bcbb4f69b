package node

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/version"
)

// changeReasons are the kubelet's reasons of the events that tell of a condition's change:
// for True and for anything else (pkg/kubelet/nodestatus).
var changeReasons = map[corev1.NodeConditionType][2]string{
	corev1.NodeReady:          {"NodeReady", "NodeNotReady"},
	corev1.NodeMemoryPressure: {"NodeHasInsufficientMemory", "NodeHasSufficientMemory"},
	corev1.NodeDiskPressure:   {"NodeHasDiskPressure", "NodeHasNoDiskPressure"},
	corev1.NodePIDPressure:    {"NodeHasInsufficientPID", "NodeHasSufficientPID"},
}

// changes returns the reasons of events for the conditions whose status is another than
// before, or that are new.
func changes(before, after []corev1.NodeCondition) (reasons []string) {
	old := map[corev1.NodeConditionType]corev1.ConditionStatus{}
	for _, c := range before {
		old[c.Type] = c.Status
	}
	for _, c := range after {
		names, told := changeReasons[c.Type]
		if !told || old[c.Type] == c.Status {
			continue
		}
		if c.Status == corev1.ConditionTrue {
			reasons = append(reasons, names[0])
		} else {
			reasons = append(reasons, names[1])
		}
	}
	return reasons
}

func (n *Node) event(kind, reason, message string) {
	if n.o.Event != nil {
		n.o.Event(kind, reason, message)
	}
}

// tellStart says that the agent has started.
func (n *Node) tellStart() {
	n.event(corev1.EventTypeNormal, "Starting", "Starting vk-metal "+version.Version()+".")
	if n.o.CgroupV1 {
		n.event(corev1.EventTypeWarning, "CgroupV1", "cgroup v1 detected. Kubernetes is to give up cgroup v1: boot with systemd.unified_cgroup_hierarchy=1 to migrate to cgroup v2.")
	}
}

// Schedulable tells of it when pods may no longer be scheduled here, or may again.
func (n *Node) Schedulable(is bool) {
	n.mu.Lock()
	changed := n.cordoned == is
	n.cordoned = !is
	n.mu.Unlock()
	if !changed {
		return
	}
	reason := "NodeNotSchedulable"
	if is {
		reason = "NodeSchedulable"
	}
	n.event(corev1.EventTypeNormal, reason, fmt.Sprintf("Node %s status is now: %s", n.o.Name, reason))
}

// tellChanges says which conditions have changed.
func (n *Node) tellChanges(before, after []corev1.NodeCondition) {
	for _, reason := range changes(before, after) {
		n.event(corev1.EventTypeNormal, reason, fmt.Sprintf("Node %s status is now: %s", n.o.Name, reason))
	}
}

// tellReboot says that the server was booted since the API server last heard of it.
func (n *Node) tellReboot(before, now string) {
	if before != "" && before != now {
		n.event(corev1.EventTypeWarning, "Rebooted", fmt.Sprintf("Node %s has been rebooted, boot id: %s", n.o.Name, now))
	}
}
