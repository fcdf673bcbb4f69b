package provider

import (
	"context"
	"io"
	"log/slog"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/vk-metal/vk-metal/internal/claims"
	"github.com/vk-metal/vk-metal/internal/devices"
	"github.com/vk-metal/vk-metal/internal/diskuse"
	"github.com/vk-metal/vk-metal/internal/images"
	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/internal/objects"
	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/internal/sandbox"
	"github.com/vk-metal/vk-metal/internal/seccomp"
	"github.com/vk-metal/vk-metal/internal/volumes"
	"github.com/vk-metal/vk-metal/netns"
	"github.com/vk-metal/vk-metal/probes"
	"github.com/vk-metal/vk-metal/systemd"
)

// Deps is everything that the provider acts through.
type Deps struct {
	// NodeName is the name of our Node object; only its pods are watched.
	NodeName string
	// Client has the node's identity. Its own rate limits must not be those of client-go's
	// defaults (5 per second): statuses are patched through it.
	Client kubernetes.Interface
	Layout paths.Layout

	Runtime  systemd.Runtime
	Executor systemd.Executor
	// Usage is asked before memory limits are lowered, and after, and when pods have to go for
	// want of memory; nil leaves that out.
	Usage   Usage
	Network netns.Network
	// Readiness gets whether a pod that has addresses of its own is ready, before the API
	// does; a pod that is gone is told as ready. nil tells nobody.
	Readiness func(ips []netip.Addr, ready bool)
	// Policy lets pods start once their network is guarded; nil lets all of them.
	Policy  Admission
	Images  images.Store
	Volumes volumes.Store
	// Disk measures what pods take of the disk; nil shares what it knows with nobody.
	Disk    *diskuse.Meter
	Objects objects.Source
	Probes  probes.Manager
	Logs    Logs
	Sandbox Sandbox
	// AppArmor may be nil where Node.AppArmor is false.
	AppArmor AppArmor
	// SELinux is nil on a host without it.
	SELinux SELinux
	// Devices lends devices of device plugins; nil where there are none.
	Devices Devices
	// Claims has the devices of ResourceClaims made ready.
	Claims Claims
	// Services feeds the service environment variables; nil leaves them out.
	Services corelisters.ServiceLister

	// Static has the static pods; nil for none.
	Static StaticSource
	// Hold holds the end of deleted pods back for their clients' sake.
	Hold HoldOptions

	Recorder record.EventRecorder
	Log      *slog.Logger

	DNS DNSConfig
	// HostIPs returns the node's InternalIPs, the primary family first.
	HostIPs func() []string
	Node    NodeFacts

	// StepHook is called before and after each effect with the effect's name
	// ("start/before", "start/after"): fault tests stop the process there. May be nil.
	StepHook func(step string)
}

// DNSConfig is what resolv.conf files are made from.
type DNSConfig struct {
	ClusterDNS    []string
	ClusterDomain string
	// HostResolvConf is read for the Default policy and for the host's search domains;
	// empty means /etc/resolv.conf.
	HostResolvConf string
}

// NodeFacts are figures of the node that pods' settings depend on.
type NodeFacts struct {
	// MemoryCapacity in bytes, for oom_score_adj of burstable pods.
	MemoryCapacity int64
	// Allocatable stands in for limits that a resourceFieldRef asks for and a container
	// does not set.
	Allocatable func() corev1.ResourceList
	// Self returns the Node object as the API has it, for its labels and taints; nil while
	// it is not known.
	Self func() *corev1.Node
	// HugePages are the sizes (hugepages-2Mi) that the node has pages of and can limit.
	HugePages []corev1.ResourceName
	// PodsMemory (bytes) and PodsTasks limit all pods together; 0 means no limit.
	PodsMemory, PodsTasks uint64
	// PodPidsLimit is TasksMax of every pod's slice; 0 means none.
	PodPidsLimit uint64
	// UnsafeSysctls are the sysctls (or prefixes ending in *) that pods may set besides
	// Kubernetes' safe ones.
	UnsafeSysctls []string
	// Seccomp is what seccomp profiles are compiled for; SeccompDefault gives the runtime's
	// default profile to containers that name none.
	Seccomp        seccomp.Host
	SeccompDefault bool
	// Pressure returns the conditions of the node under which it admits fewer pods; may be nil.
	Pressure func() []corev1.NodeConditionType
	// Privileged says whether privileged containers are allowed.
	DenyPrivileged bool
	// AppArmor says that the kernel enforces it.
	AppArmor bool
	// NoUserNamespaces is why pods cannot have user namespaces here, empty where they can.
	NoUserNamespaces string
}

// LogStream names one attempt's log.
type LogStream struct {
	PodUID, Namespace, PodName string
	Container                  string
	Attempt                    int
	Unit                       string
	// Path is the CRI log file.
	Path string
	// Stdin, StdinOnce and TTY are the container's.
	Stdin, StdinOnce, TTY bool
}

// LogPipes are the FIFOs that a container's launcher opens; with a terminal, who takes it.
type LogPipes struct {
	Stdin, Stdout, Stderr string
	Terminal              *launchspec.Terminal
}

// AttachStreams are an attached client's ends; nil leaves one out.
type AttachStreams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan systemd.TermSize
}

// Logs is what the provider needs of the log writer (internal/logs).
type Logs interface {
	// Create makes the stream directory of an attempt with its FIFOs; idempotent.
	Create(ctx context.Context, stream LogStream) (LogPipes, error)
	// WaitClosed returns once it is, or with ctx's error.
	WaitClosed(ctx context.Context, podUID, container string, attempt int) error
	// Discard removes a stream that no process will write to.
	Discard(podUID, container string, attempt int) error
	// DiscardAll removes what is left of a pod's streams once none of its processes is.
	DiscardAll(podUID string) error
	// Tail returns the last lines of a CRI log, at most maxLines and maxBytes of payload.
	Tail(path string, maxLines, maxBytes int) (string, error)
	// Attach joins a client to a running attempt's streams until either ends, or ctx does.
	Attach(ctx context.Context, podUID, container string, attempt int, streams AttachStreams) error
}

// Sandbox is what a pod's containers share besides the network; *sandbox.Manager implements it.
type Sandbox interface {
	// Ensure makes the pod's IPC namespace, its /dev/shm and what else is asked for, and
	// returns their paths; idempotent.
	Ensure(ctx context.Context, podUID string, o sandbox.Options) (sandbox.Paths, error)
	// Remove undoes it; idempotent, safe without Ensure.
	Remove(ctx context.Context, podUID string) error
}

var _ Sandbox = (*sandbox.Manager)(nil)

// Devices is what lends devices to containers; *devices.Manager implements it.
type Devices interface {
	// Wants says whether a pod asks for devices.
	Wants(pod *corev1.Pod) bool
	// Allocate lends them; idempotent. devices.ErrNotYet says that it is too early to tell.
	Allocate(ctx context.Context, pod *corev1.Pod) error
	// Prepare returns what a container has, ready for a start.
	Prepare(ctx context.Context, podUID, container string) (devices.Lent, error)
	// Release takes a pod's devices back; idempotent.
	Release(podUID string) error
}

var _ Devices = (*devices.Manager)(nil)

// Claims is what has ResourceClaims made ready by their drivers; *claims.Manager implements it.
type Claims interface {
	// Prepare does so for all of a pod's; idempotent.
	Prepare(ctx context.Context, pod *corev1.Pod) error
	// Devices names the CDI devices that a container of a prepared pod has.
	Devices(pod *corev1.Pod, c *corev1.Container) ([]string, error)
	// Release undoes it; idempotent, safe without Prepare.
	Release(ctx context.Context, podUID string) error
	// Pods are those that claims are held for, by UID, with their namespaces.
	Pods() map[string]string
}

var _ Claims = (*claims.Manager)(nil)

// Admission is what guards the networks of pods; *policy.Controller implements it.
type Admission interface {
	// Admit returns once the pod's addresses are guarded; no process of it runs before.
	// Idempotent. Its error is why the pod cannot start now.
	Admit(ctx context.Context, pod *corev1.Pod, ips []netip.Addr) error
	// Release undoes it when the network is gone; idempotent, safe without Admit.
	Release(podUID string)
}
