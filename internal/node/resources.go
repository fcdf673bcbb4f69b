package node

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Capacity is what the server has.
func Capacity(h Host, maxPods int) (corev1.ResourceList, error) {
	storage, err := Statfs(h.Storage)
	if err != nil {
		return nil, err
	}
	list := corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewQuantity(int64(h.CPUs()), resource.DecimalSI),
		corev1.ResourceMemory:           *resource.NewQuantity(h.Meminfo()["MemTotal"], resource.BinarySI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(storage.Size, resource.BinarySI),
		corev1.ResourcePods:             *resource.NewQuantity(int64(maxPods), resource.DecimalSI),
	}
	for name, bytes := range h.HugePages() {
		list[name] = *resource.NewQuantity(bytes, resource.BinarySI)
	}
	return list, nil
}

// Allocatable is capacity without what is reserved, without what the eviction thresholds keep
// back, and, for memory, without huge pages; never below zero.
func Allocatable(capacity, reserved, kept corev1.ResourceList) corev1.ResourceList {
	list := corev1.ResourceList{}
	for name, have := range capacity {
		left := have.DeepCopy()
		for _, list := range []corev1.ResourceList{reserved, kept} {
			if part, ok := list[name]; ok {
				left.Sub(part)
			}
		}
		if name == corev1.ResourceMemory {
			left.Sub(*resource.NewQuantity(hugeBytes(capacity), resource.BinarySI))
		}
		if left.Sign() < 0 {
			left.Set(0)
		}
		list[name] = left
	}
	return list
}

func hugeBytes(capacity corev1.ResourceList) (bytes int64) {
	for name, quantity := range capacity {
		if len(name) > len(corev1.ResourceHugePagesPrefix) && name[:len(corev1.ResourceHugePagesPrefix)] == corev1.ResourceHugePagesPrefix {
			bytes += quantity.Value()
		}
	}
	return bytes
}
