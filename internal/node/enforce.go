package node

import corev1 "k8s.io/api/core/v1"

// PodLimits are what all pods together may have: bytes of memory and processes, 0 for what is
// not known. They are a kubelet's with enforceNodeAllocatable=[pods] (pkg/kubelet/cm,
// GetNodeAllocatableAbsolute): capacity without what is reserved. The eviction thresholds are
// not taken off, so that pods are evicted before they meet the limit.
func (h Host) PodLimits(reserved corev1.ResourceList) (memory, tasks uint64) {
	memory = without(h.Meminfo()["MemTotal"], reserved, corev1.ResourceMemory)
	if _, limit, ok := h.Threads(); ok {
		tasks = without(limit, reserved, "pid")
	}
	return memory, tasks
}

func without(have int64, reserved corev1.ResourceList, name corev1.ResourceName) uint64 {
	quantity := reserved[name]
	return uint64(max(0, have-quantity.Value()))
}
