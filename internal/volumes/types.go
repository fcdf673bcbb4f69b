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
	// Device is set for a block device (volumeDevices); Path is then only told.
	Device *Device
	// NoExec, NoSuid and NoDev are mount options of the volume.
	NoExec, NoSuid, NoDev bool
	// Relabel says that the volume is to have the SELinux label of the containers that use it.
	Relabel bool
}

// Device is a device node of the host.
type Device struct {
	Major, Minor uint32
	// Mode has the permission bits.
	Mode     uint32
	UID, GID uint32
}

// PodInfo is what volumes need beside the spec.
type PodInfo struct {
	// FSGroup from the pod's security context.
	FSGroup *int64
	// NodeName, HostIPs and PodIPs feed downwardAPI and token binding.
	NodeName string
	HostIPs  []string
	PodIPs   []string
	// MountLabels are the SELinux labels that volumes may be mounted with, by the volumes' names.
	MountLabels map[string]string
	// Annotations and labels come from the pod itself.
}

// Error carries the reason a kubelet would show: FailedMount as event, and
// CreateContainerConfigError never (that is env's); Field names the part of the spec.
type Error struct {
	Volume, Field string
	Err           error
	// Op is what failed, in the kubelet's words; empty means MountVolume.SetUp.
	Op string
	// Quiet says that it is no news yet: there is no event of it.
	Quiet bool
	// Full says that the node cannot have more volumes of the driver: this pod is to be somewhere
	// else.
	Full bool
	// Named is the volume as the event names it, if that is not Volume: a claim's by its
	// PersistentVolume.
	Named string
	// NotFound says that a referenced object does not exist yet: retry when it appears.
	NotFound bool
}

// Labels are files' SELinux labels; *selinux.Host implements it.
type Labels interface {
	// Label reads one, "" for none.
	Label(path string) (string, error)
	// Relabel labels all that is in a directory.
	Relabel(path, label string, recursive bool) error
}

// Store is what the provider needs of volumes. *Manager implements it.
type Store interface {
	// Prepare makes every volume that a container uses ready; idempotent, also after a crash half way
	// and after an agent restart (it then finds what is there and resumes updates).
	// Errors are *Error, joined.
	Prepare(ctx context.Context, pod *corev1.Pod, info PodInfo) (map[string]Mounted, error)
	// Update re-renders the pod's configMap, secret, downwardAPI and projected volumes in
	// place (atomic ..data symlink swap) after the pod's metadata or a referenced object changed.
	Update(ctx context.Context, pod *corev1.Pod, info PodInfo) error
	// Remove deletes all of the pod's volumes; idempotent, never crosses a mount or a symlink.
	// Those that cannot be given back are *Error, joined.
	Remove(ctx context.Context, podUID string) error
	// List returns the UIDs of pods that have volumes on disk.
	List(ctx context.Context) ([]string, error)
}
