package node

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// The kubelet's default hard eviction thresholds (pkg/kubelet/apis/config/v1beta1, 1.35).
const (
	evictMemory       = 100 << 20 // bytes available
	evictNodeFSPart   = 10        // percent available
	evictNodeInodes   = 5         // percent free
	evictImageFSPart  = 15        // percent available
	evictImagesInodes = 5         // percent free
	// evictPIDs has no default in a kubelet; below this percentage forks start to fail.
	evictPIDs = 2
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

// Allocatable is capacity without what is reserved, without the eviction thresholds, and,
// for memory, without huge pages; never below zero.
func Allocatable(capacity, reserved corev1.ResourceList) corev1.ResourceList {
	list := corev1.ResourceList{}
	for name, have := range capacity {
		left := have.DeepCopy()
		if kept, ok := reserved[name]; ok {
			left.Sub(kept)
		}
		switch name {
		case corev1.ResourceMemory:
			left.Sub(*resource.NewQuantity(evictMemory+hugeBytes(capacity), resource.BinarySI))
		case corev1.ResourceEphemeralStorage:
			left.Sub(*resource.NewQuantity(have.Value()*evictNodeFSPart/100, resource.BinarySI))
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
