package volumes

import (
	"context"

	corev1 "k8s.io/api/core/v1"
)

// Mounted is a volume ready to be mounted into containers.
type Mounted struct {
	// Path on the host that is bound into containers.
	Path string
	// Readonly volumes (configMap, secret, projected, downwardAPI) are mounted read-only whatever the mount says.
	Readonly bool
	// File says that Path is a file or socket (hostPath).
	File bool
	// Device says that Path is a block device (volumeDevices).
	Device bool
}

// PodInfo is what volumes need beside the spec.
type PodInfo struct {
	// FSGroup from the pod's security context.
	FSGroup *int64
	// NodeName, HostIPs and PodIPs feed downwardAPI and token binding.
	NodeName string
	HostIPs  []string
	PodIPs   []string
	// Annotations and labels come from the pod itself.
}

// Error carries the reason a kubelet would show: FailedMount as event, and
// CreateContainerConfigError never (that is env's); Field names the part of the spec.
type Error struct {
	Volume, Field string
	Err           error
	// NotFound says that a referenced object does not exist yet: retry when it appears.
	NotFound bool
}

// Store is what the provider needs of volumes. *Manager implements it.
type Store interface {
	// Prepare makes every volume of the pod ready; idempotent, also after a crash half way
	// and after an agent restart (it then finds what is there and resumes updates).
	// Errors are *Error, joined.
	Prepare(ctx context.Context, pod *corev1.Pod, info PodInfo) (map[string]Mounted, error)
	// Update re-renders the pod's configMap, secret, downwardAPI and projected volumes in
	// place (atomic ..data symlink swap) after the pod's metadata or a referenced object changed.
	Update(ctx context.Context, pod *corev1.Pod, info PodInfo) error
	// Remove deletes all of the pod's volumes; idempotent, never crosses a mount or a symlink.
	Remove(ctx context.Context, podUID string) error
	// List returns the UIDs of pods that have volumes on disk.
	List(ctx context.Context) ([]string, error)
}
