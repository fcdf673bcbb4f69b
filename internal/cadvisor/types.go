package cadvisor

import (
	"context"
	"time"

	"github.com/vk-metal/vk-metal/systemd"
)

// Cgroup is one cgroup with what it has used.
type Cgroup struct {
	// Name and Image are the container's; empty for a pod's slice and for those of the node.
	Name, Image string
	// Namespace and Pod are empty for cgroups of the node, Container for a pod's slice.
	Namespace, Pod, Container string
	StartedAt                 time.Time
	Stats                     systemd.Stats
	Group                     systemd.Cgroup
	// Links are the interfaces of the pod's network, told with its slice.
	Links []Link
	// Layer is what a container has written; nil where it is not known.
	Layer *Layer
}

// Layer is a container's writable layer and the file system that it is on; it has no device of
// its own.
type Layer struct{ Used, Capacity, Inodes, InodesFree uint64 }

// Source has the cgroups of now.
type Source interface {
	// Cgroups reads those of the node, the pods and the containers; one that ended meanwhile
	// is left out.
	Cgroups(ctx context.Context) ([]Cgroup, error)
	// Machine is the server.
	Machine() Machine
}

// Machine is what cAdvisor tells of the server.
type Machine struct {
	BootID, MachineID, SystemUUID string
	KernelVersion, OSVersion      string
	CPUs, PhysicalCores, Sockets  int
	MemoryBytes, SwapBytes        int64
}
