package podstatus

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

// ContainerIDPrefix is the runtime's name in container IDs.
const ContainerIDPrefix = "vk-metal://"

// Input is everything that a status is made from.
type Input struct {
	Observed podplan.Observed
	Decision podplan.Decision
	// Waiting has what keeps containers from being started besides the decision: images,
	// configuration.
	Waiting map[string]podplan.Waiting
	// StartTime is when this node first saw the pod; the API's wins.
	StartTime time.Time
	// SandboxReady says that the pod's network and namespaces are there.
	SandboxReady bool
	PodIPs       []string
	HostIPs      []string
	// ResizePending is why a resize was not granted, with no reason if none waits;
	// ResizeError is why a granted one is not in effect.
	ResizePending podplan.Ending
	ResizeError   string
	// Refused fails the pod at admission.
	Refused *podplan.Ending
}

// Compute returns the pod's whole status; what others own in the API object's is kept.
func Compute(pod *corev1.Pod, in Input) corev1.PodStatus {
	old := pod.Status
	s := corev1.PodStatus{
		ObservedGeneration: pod.Generation,
		QOSClass:           podplan.QOS(pod),
		StartTime:          old.StartTime,
		NominatedNodeName:  old.NominatedNodeName,
		Resize:             old.Resize, ResourceClaimStatuses: old.ResourceClaimStatuses,
		ExtendedResourceClaimStatus: old.ExtendedResourceClaimStatus,
		AllocatedResources:          old.AllocatedResources, Resources: old.Resources,
	}
	if s.StartTime == nil && !in.StartTime.IsZero() {
		s.StartTime = &metav1.Time{Time: in.StartTime.Truncate(time.Second)}
	}
	addresses(&s, pod, in)
	containers(&s, pod, in)
	s.Phase = phase(pod, s, in.Decision.Done)
	reasons(&s, old, in)
	s.Conditions = conditions(pod, s, in)
	rejected := in.Refused != nil || isTerminal(old.Phase) && len(old.ContainerStatuses) == 0
	if rejected && !slices.ContainsFunc(s.ContainerStatuses, hasRun) {
		// As a kubelet's: with states that wait, kubectl would show those instead of the reason.
		s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses = nil, nil, nil
	}
	return s
}

// reasons settles the phase with what ends the pod as a whole, and its reason.
func reasons(s *corev1.PodStatus, old corev1.PodStatus, in Input) {
	failure := in.Decision.Failure
	if in.Refused != nil {
		failure = in.Refused
	}
	switch {
	case isTerminal(old.Phase):
		s.Phase = old.Phase // a final phase stays
	case in.Decision.Done && (failure != nil || !isTerminal(s.Phase)):
		s.Phase = corev1.PodFailed
	}
	if !in.Decision.Done && isTerminal(s.Phase) && !isTerminal(old.Phase) {
		// Not before every process is dead: the phase would be final.
		s.Phase = corev1.PodRunning
		if old.Phase == corev1.PodPending && !slices.ContainsFunc(s.ContainerStatuses, hasRun) {
			s.Phase = corev1.PodPending
		}
	}
	switch {
	case failure != nil:
		s.Reason, s.Message = failure.Reason, failure.Message
	case s.Phase == old.Phase:
		s.Reason, s.Message = old.Reason, old.Message
	}
}

func hasRun(cs corev1.ContainerStatus) bool {
	return cs.State.Running != nil || cs.State.Terminated != nil || cs.LastTerminationState.Terminated != nil
}

func isTerminal(p corev1.PodPhase) bool {
	return p == corev1.PodSucceeded || p == corev1.PodFailed
}

func addresses(s *corev1.PodStatus, pod *corev1.Pod, in Input) {
	ips := in.PodIPs
	if pod.Spec.HostNetwork {
		ips = in.HostIPs
	}
	for _, ip := range ips {
		s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip})
	}
	if len(s.PodIPs) == 0 {
		s.PodIPs = pod.Status.PodIPs // the network is gone or not known yet: the address was this one
	}
	if len(s.PodIPs) > 0 {
		s.PodIP = s.PodIPs[0].IP
	}
	for _, ip := range in.HostIPs {
		s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: ip})
	}
	if len(s.HostIPs) > 0 {
		s.HostIP = s.HostIPs[0].IP
	}
}
