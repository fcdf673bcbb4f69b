package podplan

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// StorageUsage is what a pod takes of the node's disk, in bytes.
type StorageUsage struct {
	// Containers have writable layers, logs and termination logs, Volumes are emptyDirs on disk;
	// by name.
	Containers, Volumes map[string]int64
	// Files are those that containers have in /etc and may write to (CVE-2020-8557).
	Files int64
	// Inodes are those of all of them.
	Inodes int64
}

// Total is the sum of all bytes.
func (u StorageUsage) Total() (bytes int64) {
	bytes = u.Files
	for _, used := range u.Containers {
		bytes += used
	}
	for _, used := range u.Volumes {
		bytes += used
	}
	return bytes
}

// LimitsStorage says whether anything of the pod limits what it takes of the node's disk.
func LimitsStorage(pod *corev1.Pod) bool {
	for _, v := range pod.Spec.Volumes {
		if _, ok := emptyDirLimit(v); ok {
			return true
		}
	}
	for _, c := range Containers(pod) {
		if _, ok := storageLimit(c.Resources.Limits); ok {
			return true
		}
	}
	return false
}

// OnNodeDisk says whether what is in the volume takes of the node's own disk, as ephemeral storage.
func OnNodeDisk(v *corev1.Volume) bool {
	return v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumDefault || v.ConfigMap != nil
}

// emptyDirLimit is the limit of an emptyDir on disk; one in memory is limited by its tmpfs.
func emptyDirLimit(v corev1.Volume) (resource.Quantity, bool) {
	if v.EmptyDir == nil || v.EmptyDir.Medium == corev1.StorageMediumMemory || v.EmptyDir.SizeLimit == nil || v.EmptyDir.SizeLimit.Sign() <= 0 {
		return resource.Quantity{}, false
	}
	return *v.EmptyDir.SizeLimit, true
}

func storageLimit(limits corev1.ResourceList) (resource.Quantity, bool) {
	q, ok := limits[corev1.ResourceEphemeralStorage]
	return q, ok && q.Sign() > 0
}

// StorageVerdict says why a pod has to go for what it takes of the disk, in a kubelet's order
// and words (pkg/kubelet/eviction, localStorageEviction); nil if it may stay.
func StorageVerdict(pod *corev1.Pod, usage StorageUsage) *Ending {
	evicted := func(format string, args ...any) *Ending {
		return &Ending{Reason: ReasonEvicted, Message: fmt.Sprintf(format, args...)}
	}
	for _, v := range pod.Spec.Volumes {
		used := usage.Volumes[v.Name]
		if limit, ok := emptyDirLimit(v); ok && used > limit.Value() {
			return evicted("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, limit.String())
		}
	}
	if limit, ok := storageLimit(resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})); ok && usage.Total() > limit.Value() {
		return evicted("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", limit.String())
	}
	for _, c := range Containers(pod) {
		if limit, ok := storageLimit(c.Resources.Limits); ok && usage.Containers[c.Name] > limit.Value() {
			return evicted("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, limit.String())
		}
	}
	return nil
}

// LentVolumes says whether the pod names volumes that are not made of this node's own: of
// claims, of drivers (also by the type that they had when they were built into Kubernetes), of servers.
func LentVolumes(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.PersistentVolumeClaim != nil || v.Ephemeral != nil || v.CSI != nil || v.NFS != nil ||
			v.AWSElasticBlockStore != nil || v.AzureDisk != nil || v.AzureFile != nil || v.Cinder != nil ||
			v.GCEPersistentDisk != nil || v.PortworxVolume != nil || v.VsphereVolume != nil
	})
}
