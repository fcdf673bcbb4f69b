package podplan

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// hugePages limits the container and its pod for every size that the node has: what is not asked
// for is not to be had (pkg/kubelet/kuberuntime, GetHugepageLimitsFromResources).
func hugePages(pod *corev1.Pod, c Container, sizes []corev1.ResourceName) []launchspec.HugePages {
	var limits []launchspec.HugePages
	all := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
	for _, name := range sizes {
		own, set := c.Resources.Limits[name]
		if r := pod.Spec.Resources; !set && r != nil {
			own = r.Limits[name] // what the containers share
		}
		total := all[name]
		limits = append(limits, launchspec.HugePages{
			Size: kernelSize(name), Container: uint64(max(own.Value(), 0)), Pod: uint64(max(total.Value(), 0)),
		})
	}
	return limits
}

// kernelSize is how the files of the hugetlb controller name a size: hugepages-2Mi is 2MB
// (mm/hugetlb_cgroup.c, mem_fmt).
func kernelSize(name corev1.ResourceName) string {
	size, err := resource.ParseQuantity(strings.TrimPrefix(string(name), corev1.ResourceHugePagesPrefix))
	if err != nil {
		return ""
	}
	switch bytes := size.Value(); {
	case bytes >= 1<<30:
		return fmt.Sprintf("%dGB", bytes>>30)
	case bytes >= 1<<20:
		return fmt.Sprintf("%dMB", bytes>>20)
	default:
		return fmt.Sprintf("%dKB", bytes>>10)
	}
}

// hugePagesRefused names the containers that ask for pages which the node could not limit.
func hugePagesRefused(pod *corev1.Pod, policy Policy) []Refusal {
	if policy.HugePages {
		return nil
	}
	const reason = "this node has no huge pages that it can limit: it needs some in /proc/sys/vm/nr_hugepages at the agent's start, and the kernel's hugetlb controller"
	asks := func(list corev1.ResourceList) bool {
		for name, q := range list {
			if strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) && !q.IsZero() {
				return true
			}
		}
		return false
	}
	var refusals []Refusal
	if r := pod.Spec.Resources; r != nil && asks(r.Limits) {
		refusals = append(refusals, Refusal{Field: "spec.resources.limits", Reason: reason})
	}
	for _, c := range Containers(pod) {
		if asks(c.Resources.Limits) {
			refusals = append(refusals, Refusal{Field: c.Field + ".resources.limits", Reason: reason, Only: only(c)})
		}
	}
	return refusals
}
