package podplan

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Allocation is what the node has granted each container, by name.
type Allocation map[string]corev1.ResourceRequirements

// AllocationOf grants a pod all that it asks for.
func AllocationOf(pod *corev1.Pod) Allocation {
	a := Allocation{}
	for _, c := range Containers(pod) {
		if c.Role != RoleEphemeral {
			a[c.Name] = c.Resources
		}
	}
	return a
}

// Granted is the pod as if it asked for what it was granted. The pod is not changed.
func Granted(pod *corev1.Pod, a Allocation) *corev1.Pod {
	granted := *pod
	granted.Spec.InitContainers = grantedList(pod.Spec.InitContainers, a)
	granted.Spec.Containers = grantedList(pod.Spec.Containers, a)
	return &granted
}

func grantedList(list []corev1.Container, a Allocation) []corev1.Container {
	out := make([]corev1.Container, len(list))
	for i, c := range list {
		if resources, ok := a[c.Name]; ok {
			c.Resources = resources
		}
		out[i] = c
	}
	return out
}

// Resizing says whether the pod asks for other CPU or memory than it was granted.
func Resizing(pod *corev1.Pod, a Allocation) bool {
	for _, c := range Containers(pod) {
		if granted, ok := a[c.Name]; ok && len(resized(granted, c.Resources)) > 0 {
			return true
		}
	}
	return false
}

// AdmitResize says why a pod cannot be given what it now asks for (pkg/kubelet/allocation):
// Infeasible never, Deferred not now; "" if it can.
func AdmitResize(pod *corev1.Pod, place Place) (reason, message string) {
	requests := requestsOf(pod)
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		capacity, known := place.Allocatable[name]
		if wanted := figure(name, requests[name]); known && wanted > figure(name, capacity) {
			return corev1.PodReasonInfeasible, fmt.Sprintf("Node didn't have enough capacity: %s, requested: %d, capacity: %d",
				name, wanted, figure(name, capacity))
		}
	}
	if short := place.short(pod); short != nil {
		return corev1.PodReasonDeferred, short.String()
	}
	return "", ""
}

// resized lists the resources that differ between two requirements, of those that a
// running container's can be changed.
func resized(from, to corev1.ResourceRequirements) []corev1.ResourceName {
	var names []corev1.ResourceName
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		if differ(from.Limits[name], to.Limits[name]) || differ(from.Requests[name], to.Requests[name]) {
			names = append(names, name)
		}
	}
	return names
}

func differ(a, b resource.Quantity) bool { return a.Cmp(b) != 0 }

// Resize is one running attempt whose limits are to be changed in place.
type Resize struct {
	Container string                      `json:"container"`
	Attempt   int                         `json:"attempt"`
	Resources corev1.ResourceRequirements `json:"resources"`
}

// ResizeInProgress says whether an attempt runs with other resources than its container
// was granted. pod is as granted.
func ResizeInProgress(pod *corev1.Pod, obs Observed) bool {
	for _, c := range Containers(pod) {
		if last, ok := obs.latest(c.Name); ok && last.Phase == Running {
			if changed, _ := resizeOf(c, last); changed {
				return true
			}
		}
	}
	return false
}

// resizeOf compares what an attempt runs with and what its container was granted: restart
// says that the change needs a new attempt (resizePolicy).
func resizeOf(c Container, a Attempt) (changed, restart bool) {
	if a.Resources == nil {
		return false, false
	}
	names := resized(*a.Resources, c.Resources)
	for _, policy := range c.ResizePolicy {
		for _, name := range names {
			if policy.ResourceName == name && policy.RestartPolicy == corev1.RestartContainer {
				restart = true
			}
		}
	}
	return len(names) > 0, restart
}
