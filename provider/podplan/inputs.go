package podplan

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/internal/seccomp"
)

// PodInputs are the resolved parts that a pod's containers share.
type PodInputs struct {
	Layout paths.Layout `json:"-"`
	// NetNS and IPC are namespaces to join, Shm is the directory mounted at /dev/shm; empty
	// where the pod uses the host's.
	NetNS string `json:"netNS,omitempty"`
	IPC   string `json:"ipc,omitempty"`
	Shm   string `json:"shm,omitempty"`
	// Handler is the runtime handler of the pod's RuntimeClass.
	Handler string `json:"handler,omitempty"`
	// Users is the pod's user namespace, nil where it has the host's.
	Users *PodUsers `json:"users,omitempty"`
	// Hosts, ResolvConf and HostnameFile are the pod's files for /etc.
	Hosts        string `json:"hosts"`
	ResolvConf   string `json:"resolvConf"`
	HostnameFile string `json:"hostnameFile"`
	Hostname     string `json:"hostname"`

	Volumes map[string]Volume `json:"volumes,omitempty"`

	// SELinux is what labels are made of, nil on a host without SELinux.
	SELinux *PodSELinux `json:"seLinux,omitempty"`

	MemoryCapacity int64 `json:"memoryCapacity"`
	// HugePages are the sizes that the node has pages of, such as hugepages-2Mi.
	HugePages    []corev1.ResourceName `json:"hugePages,omitempty"`
	PodPidsLimit uint64                `json:"podPidsLimit,omitempty"`

	// Seccomp is what profiles are compiled for; SeccompDefault gives the runtime's default
	// profile to containers that name none.
	Seccomp        seccomp.Host `json:"-"`
	SeccompDefault bool         `json:"seccompDefault,omitempty"`
}

// Volume is a volume ready on the host.
type Volume struct {
	Path     string `json:"path"`
	Readonly bool   `json:"readonly,omitempty"`
	File     bool   `json:"file,omitempty"`
	// Layers are those of an image, topmost first, which the volume is then.
	Layers []string `json:"layers,omitempty"`
	// Device is set for a block device.
	Device *BlockDevice `json:"device,omitempty"`
	NoExec bool         `json:"noExec,omitempty"`
	NoSuid bool         `json:"noSuid,omitempty"`
	NoDev  bool         `json:"noDev,omitempty"`
	// Relabel says that the volume is the pod's, and gets the label of who uses it.
	Relabel bool `json:"relabel,omitempty"`
}

// BlockDevice is a block device of the host; Mode has its permission bits.
type BlockDevice struct {
	Major, Minor uint32
	Mode         uint32
	UID, GID     uint32
}

// Image is what a container takes from its image.
type Image struct {
	Ref    string   `json:"ref"`
	Digest string   `json:"digest"`
	Layers []string `json:"layers,omitempty"`
	// HostPath is the root of a host image, which has no layers.
	Host     bool   `json:"host,omitempty"`
	HostPath string `json:"hostPath,omitempty"`

	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	Env        []string `json:"env,omitempty"`
	User       string   `json:"user,omitempty"`
	WorkingDir string   `json:"workingDir,omitempty"`
	StopSignal string   `json:"stopSignal,omitempty"`
}

// EnvVar is a resolved environment variable; Value may hold any bytes.
type EnvVar struct{ Name, Value string }

// ContainerInputs are the resolved parts of one attempt.
type ContainerInputs struct {
	Image Image
	// Env is the container's environment without the image's, in order, names once.
	Env []EnvVar
	// Stdin, Stdout and Stderr are FIFOs, "" for none. A container with a terminal has none
	// of them: Terminal says who takes its master.
	Stdin, Stdout, Stderr string
	Terminal              *launchspec.Terminal
	// TerminationLog is the host's file for terminationMessagePath.
	TerminationLog string
	// PIDOf is whose PID namespace is joined: an ephemeral container's target's, or the
	// pod's; nil for a new one.
	PIDOf *launchspec.UnitProcess
	// Seccomp is the profile of LocalSeccomp.
	Seccomp *seccomp.Profile
	// Lent is what the container has of device plugins.
	Lent Lent
	// ImageVolumes are the volumes of the container that are images.
	ImageVolumes map[string]Volume
	// VolumeImages are the digests of their images.
	VolumeImages []string
	// AppArmor is the loaded profile that confines the container, empty for none.
	AppArmor string
	// Unlabelled says that the host's SELinux policy has no label for privileged containers, of which
	// this is one: its process has the host's.
	Unlabelled bool
}

// Lent is what a container has of device plugins.
type Lent struct {
	Env     map[string]string
	Mounts  []LentMount
	Devices []LentDevice
	// Groups are supplementary.
	Groups []uint32
	// Hooks are those of CDI devices.
	Hooks []launchspec.Hook
}

// LentMount is a file or directory of the host.
type LentMount struct {
	Source, Target string
	Readonly, File bool

	NoSuid, NoDev, NoExec bool
}

// LentDevice is a device of the host, at Path in the container; Access is of r, w and m.
type LentDevice struct {
	Path         string
	Block        bool
	Major, Minor uint32
	Mode         uint32
	UID, GID     uint32
	Access       string
}

// ConfigError says that a container cannot be started as it is configured. Reason goes
// into its waiting state; nothing has been started.
type ConfigError struct{ Reason, Message string }

// Error is the message.
func (e *ConfigError) Error() string { return e.Message }

// Reasons of a ConfigError.
const (
	CreateContainerConfigError = "CreateContainerConfigError"
	CreateContainerError       = "CreateContainerError"
)

// StartRefusal says that execve could never take what the container asks for. It counts
// as a failed attempt (StartError), as with a container runtime.
type StartRefusal struct{ Message string }

// Error is the message.
func (e *StartRefusal) Error() string { return e.Message }
