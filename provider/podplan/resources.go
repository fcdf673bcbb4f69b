package podplan

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/vk-metal/vk-metal/systemd"
)

// The kubelet's bounds (pkg/kubelet/cm/helpers_linux.go).
const (
	minShares = 2
	maxShares = 262144
	// minQuota is 1 ms in a period of 100 ms.
	minQuota = 10 * time.Millisecond
)

// Shares converts thousandths of a CPU into a cgroup v1 weight.
func Shares(milliCPU int64) uint64 {
	return uint64(min(max(milliCPU*1024/1000, minShares), maxShares))
}

// quota converts a CPU limit into CPU time per second; nil for no limit.
func quota(milliCPU int64) *time.Duration {
	if milliCPU == 0 {
		return nil
	}
	q := max(time.Duration(milliCPU)*time.Millisecond, minQuota)
	return &q
}

func memoryMax(bytes int64) *uint64 {
	if bytes <= 0 {
		return nil
	}
	m := uint64(bytes)
	return &m
}

// PodSlice is the pod's slice with its limits, by the kubelet's ResourceConfigForPod.
func PodSlice(pod *corev1.Pod, pidsLimit uint64) systemd.Slice {
	qos := QOS(pod)
	slice := systemd.Slice{
		Name:        SliceName(string(pod.UID), qos),
		Description: "Pod " + pod.Namespace + "/" + pod.Name,
	}
	if pidsLimit > 0 {
		slice.Resources.TasksMax = &pidsLimit
	}
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	shares := Shares(requests.Cpu().MilliValue())
	slice.Resources.CPUShares = &shares
	cpuLimited, memoryLimited := allLimited(pod)
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
	if cpuLimited {
		slice.Resources.CPUQuota = quota(limits.Cpu().MilliValue())
	}
	if memoryLimited {
		slice.Resources.MemoryMax = memoryMax(limits.Memory().Value())
	}
	return slice
}

// allLimited says whether every container (or the pod itself) has a limit for CPU and memory.
func allLimited(pod *corev1.Pod) (cpu, memory bool) {
	cpu, memory = true, true
	for _, c := range Containers(pod) {
		if c.Role == RoleEphemeral {
			continue
		}
		cpu = cpu && !c.Resources.Limits.Cpu().IsZero()
		memory = memory && !c.Resources.Limits.Memory().IsZero()
	}
	if r := pod.Spec.Resources; r != nil {
		cpu = cpu || !r.Limits.Cpu().IsZero()
		memory = memory || !r.Limits.Memory().IsZero()
	}
	return cpu, memory
}

// ContainerResources are the unit's limits. A container without a limit of its own has its
// pod's, so that it sees in its cgroup what binds it (pkg/kubelet/kuberuntime, getCPULimit).
func ContainerResources(pod *corev1.Pod, c Container) systemd.Resources {
	cpu := limitOf(pod, c, corev1.ResourceCPU)
	request, set := c.Resources.Requests[corev1.ResourceCPU]
	if !set {
		request = cpu
	}
	shares := Shares(request.MilliValue())
	memory := limitOf(pod, c, corev1.ResourceMemory)
	return systemd.Resources{CPUShares: &shares, CPUQuota: quota(cpu.MilliValue()), MemoryMax: memoryMax(memory.Value())}
}

func limitOf(pod *corev1.Pod, c Container, name corev1.ResourceName) resource.Quantity {
	limit := c.Resources.Limits[name]
	if r := pod.Spec.Resources; r != nil && limit.IsZero() {
		limit = r.Limits[name]
	}
	return limit
}

// QOS is the pod's class: what the API server computed, else the same rule.
func QOS(pod *corev1.Pod) corev1.PodQOSClass {
	if pod.Status.QOSClass != "" {
		return pod.Status.QOSClass
	}
	var sets []corev1.ResourceRequirements
	if r := pod.Spec.Resources; r != nil && len(r.Requests)+len(r.Limits) > 0 {
		sets = append(sets, *r)
	} else {
		for _, c := range Containers(pod) {
			if c.Role != RoleEphemeral {
				sets = append(sets, c.Resources)
			}
		}
	}
	return qosOf(sets)
}

func qosOf(sets []corev1.ResourceRequirements) corev1.PodQOSClass {
	guaranteed, any := true, false
	for _, r := range sets {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			limit, hasLimit := r.Limits[name]
			request, hasRequest := r.Requests[name]
			any = any || hasLimit && !limit.IsZero() || hasRequest && !request.IsZero()
			if !hasLimit || limit.IsZero() || hasRequest && request.Cmp(limit) != 0 {
				guaranteed = false
			}
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// oomScoreAdjust is the kubelet's (pkg/kubelet/qos/policy.go). With requests of the pod
// itself, what they leave beside the containers' is shared by those evenly (KEP-2837); a sidecar is
// no likelier a victim than any main container.
func oomScoreAdjust(pod *corev1.Pod, c Container, memoryCapacity int64) int {
	const guaranteed = -997
	if pod.Spec.PriorityClassName == "system-node-critical" { // admission says who may
		return guaranteed
	}
	switch QOS(pod) {
	case corev1.PodQOSGuaranteed:
		return guaranteed
	case corev1.PodQOSBestEffort:
		return 1000
	}
	if memoryCapacity <= 0 {
		return 999
	}
	request := c.Resources.Requests.Memory().Value()
	if c.Role == RoleSidecar {
		request = max(request, leastMainMemory(pod))
	}
	request += sharedMemory(pod)
	return int(min(max(1000-1000*request/memoryCapacity, 1000+guaranteed), 999))
}

// leastMainMemory is the smallest memory request of the main containers, bytes.
func leastMainMemory(pod *corev1.Pod) int64 {
	least := int64(-1)
	for _, c := range pod.Spec.Containers {
		if request := c.Resources.Requests.Memory().Value(); least < 0 || request < least {
			least = request
		}
	}
	return max(least, 0)
}

// sharedMemory is a container's part of the pod's memory request that no container asks for, bytes.
func sharedMemory(pod *corev1.Pod) int64 {
	if !resourcehelper.IsPodLevelRequestsSet(pod) {
		return 0
	}
	own := resourcehelper.AggregateContainerRequests(pod, resourcehelper.PodResourcesOptions{})
	rest := pod.Spec.Resources.Requests.Memory().Value() - own.Memory().Value()
	return max(rest, 0) / int64(len(pod.Spec.Containers)+len(pod.Spec.InitContainers))
}
