package systemd

import (
	"context"
	"syscall"
	"time"
)

// Resources are the cgroup settings of a slice or a unit, in Kubernetes' terms. nil means not set.
// On cgroup v1 and v2 alike they are set through systemd's properties.
type Resources struct {
	// CPUShares is the cgroup v1 weight (2..262144) as a kubelet computes it from requests;
	// converted to CPUWeight (1..10000) on v2.
	CPUShares *uint64 `json:"cpuShares,omitempty"`
	// CPUQuota is CPU time per second of wall time.
	CPUQuota *time.Duration `json:"cpuQuota,omitempty"`
	// MemoryMax in bytes.
	MemoryMax *uint64 `json:"memoryMax,omitempty"`
	TasksMax  *uint64 `json:"tasksMax,omitempty"`
}

// Slice is a pod's slice, or one of the QoS slices above it.
type Slice struct {
	Name        string    `json:"name"` // kubepods-burstable-pod<uid with _>.slice
	Description string    `json:"description"`
	Resources   Resources `json:"resources"`
}

// Identity is written into every unit of ours as LogExtraFields and read back from
// there: it is never parsed from unit names.
type Identity struct {
	PodUID       string `json:"podUID"`       // VK_METAL_POD_UID=
	PodNamespace string `json:"podNamespace"` // VK_METAL_POD_NAMESPACE=
	PodName      string `json:"podName"`      // VK_METAL_POD_NAME=
	Container    string `json:"container"`    // VK_METAL_CONTAINER=
	Attempt      int    `json:"attempt"`      // VK_METAL_ATTEMPT=
	// SpecHash tells whether a running container is still the one wanted.
	SpecHash string `json:"specHash"` // VK_METAL_SPEC_HASH=
	// Image is the image reference's digest that the attempt runs from (used by image GC).
	Image string `json:"image"` // VK_METAL_IMAGE=
}

// Unit is one attempt of one container.
type Unit struct {
	Name        string    `json:"name"` // vkm-<uid>-<container>-<attempt>.service
	Slice       string    `json:"slice"`
	Description string    `json:"description"` // namespace/pod container
	Identity    Identity  `json:"identity"`
	Resources   Resources `json:"resources"`
	// LaunchSpec is the path of the launchspec.Spec, ExitRecord of the record that ExecStopPost writes.
	LaunchSpec string `json:"launchSpec"`
	ExitRecord string `json:"exitRecord"`
	// After and Wants order containers; between containers there is never Requires.
	After []string `json:"after,omitempty"`
	Wants []string `json:"wants,omitempty"`
	// OOMScoreAdjust is tried by the launcher, not by systemd (it needs a capability).
	OOMScoreAdjust *int `json:"oomScoreAdjust,omitempty"`
	// DeviceAllow: false gives the container runtime's default device list, true all devices (privileged).
	AllDevices bool `json:"allDevices,omitempty"`
	// Strict adds what systemd has to confine services with and a container can live with.
	Strict bool `json:"strict,omitempty"`
	// DeviceAllow adds devices to the default list.
	DeviceAllow []DeviceRule `json:"deviceAllow,omitempty"`
	// StopTimeout is how long systemd itself waits between TERM and KILL when it stops the
	// unit (host shutdown, RemoveSlice). 0 means 30 s. The agent's own stops do not use it, but the
	// program that records the end has no longer than twice that.
	StopTimeout time.Duration `json:"stopTimeout,omitempty"`
}

// DeviceRule allows one device node.
type DeviceRule struct {
	Path   string `json:"path"`   // on the host, e.g. /dev/nvidia0
	Access string `json:"access"` // of r, w and m
}

// UnitState is what systemd says of a unit of ours.
type UnitState struct {
	Name        string
	Identity    Identity
	Slice       string
	ActiveState string // active, activating, deactivating, inactive, failed
	SubState    string
	MainPID     int
	// ControlGroup is the path below the cgroup mount.
	ControlGroup string
	// StartedAt is ExecMainStartTimestamp.
	StartedAt time.Time
}

// Running says whether processes of the attempt may still be alive.
func (s UnitState) Running() bool {
	switch s.ActiveState {
	case "active", "activating", "deactivating", "reloading":
		return true
	}
	return false
}

// Event says that something about a unit of ours may have changed. It carries no
// meaning beyond that: look again. That a unit which Start has begun runs is no event.
type Event struct {
	Unit string
	// PodUID is known once the unit was seen by Start or List in this process, else empty.
	PodUID string
	// All says that events may have been lost (reconnect, daemon-reexec): look at everything.
	All bool
}

// Started is the outcome of a successful start.
type Started struct {
	MainPID   int
	StartedAt time.Time
}

// Runtime is what the provider needs of systemd. *Manager implements it.
type Runtime interface {
	// EnsureSlice starts the slice and sets its resources; it is idempotent.
	EnsureSlice(ctx context.Context, slice Slice) error
	// RemoveSlice stops a slice and everything in it; missing is success.
	RemoveSlice(ctx context.Context, name string) error
	// Start starts one attempt and returns once its process has been handed over
	// (or failed: then the exit record has the reason).
	Start(ctx context.Context, unit Unit) (Started, error)
	// Signal sends a signal to the main process (all=false) or to every process of the unit.
	Signal(ctx context.Context, unit string, signal syscall.Signal, all bool) error
	// Remove forgets an ended unit (reset-failed), killing it first if need be; missing is success.
	Remove(ctx context.Context, unit string) error
	// List returns every container unit of ours that systemd knows.
	List(ctx context.Context) ([]UnitState, error)
	// Get returns one unit; ok is false when systemd does not know it.
	Get(ctx context.Context, unit string) (state UnitState, ok bool, err error)
	// ListSlices returns the names of the pod slices that exist (kubepods*-pod*.slice).
	ListSlices(ctx context.Context) ([]string, error)
	// SetResources changes the limits of a running unit or slice.
	SetResources(ctx context.Context, name string, resources Resources) error
	// Events delivers changes until ctx ends. One reader.
	Events() <-chan Event
}
