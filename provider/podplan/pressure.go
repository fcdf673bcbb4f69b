package podplan

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// UnderPressure says why a node that is short of something does not take a pod, in a
// kubelet's words (pkg/kubelet/eviction, Admit); nil if it does. For want of memory alone only
// pods without any request are turned away. Critical pods are not to be asked about.
func UnderPressure(pod *corev1.Pod, conditions []corev1.NodeConditionType) *Refusal {
	if len(conditions) == 0 {
		return nil
	}
	if slices.Equal(conditions, []corev1.NodeConditionType{corev1.NodeMemoryPressure}) {
		taint := corev1.Taint{Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule}
		tolerated := slices.ContainsFunc(pod.Spec.Tolerations, func(t corev1.Toleration) bool { return tolerates(t, taint) })
		if tolerated || QOS(pod) != corev1.PodQOSBestEffort {
			return nil
		}
	}
	return &Refusal{Field: "spec.nodeName", Admission: ReasonEvicted, Reason: fmt.Sprintf("The node had condition: %v. ", conditions)}
}

// ReasonEvicted is the status.reason of pods that the node turns away or ends for want of a
// resource.
const ReasonEvicted = "Evicted"
