package devices

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	deviceapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// Lent is what a container gets with its devices.
type Lent struct {
	Env     map[string]string
	Mounts  []Mount
	Devices []Device
	// Nodes, Hooks and Groups, supplementary ones of the processes, are those of CDI devices.
	Nodes  []Node
	Groups []uint32
	Hooks  []Hook
}

// Hook is a createContainer hook of the OCI runtime specification; Timeout in seconds, 0 for none.
type Hook struct {
	Path      string
	Args, Env []string
	Timeout   int
}

// Mount is a file or directory of the host in the container.
type Mount struct {
	HostPath, ContainerPath string
	ReadOnly                bool
	NoSuid, NoDev, NoExec   bool
}

// Device is a device node of the host in the container; Permissions are of r, w and m.
type Device struct{ HostPath, ContainerPath, Permissions string }

// preStartTimeout is a kubelet's.
const preStartTimeout = deviceapi.KubeletPreStartContainerRPCTimeoutInSecs * time.Second

// Prepare returns what was lent to the container, after the plugins that want to have made the
// devices ready for a start.
func (m *Manager) Prepare(ctx context.Context, podUID, container string) (Lent, error) {
	m.mu.Lock()
	resources := m.lent[podUID][container]
	plugins := maps.Clone(m.plugins)
	m.mu.Unlock()
	out := Lent{Env: map[string]string{}}
	var names []string
	for _, name := range slices.Sorted(maps.Keys(resources)) {
		l := resources[name]
		if l.Answer == nil {
			continue
		}
		if err := preStart(ctx, plugins[name], l.IDs); err != nil {
			return Lent{}, fmt.Errorf("device plugin of %s: PreStartContainer rpc failed with err: %w", name, err)
		}
		out.add(l.Answer)
		for _, d := range l.Answer.CdiDevices {
			names = append(names, d.Name)
		}
	}
	return out, out.AddCDI(m.o.SpecDirs, names)
}

func preStart(ctx context.Context, p *plugin, ids []string) error {
	if p == nil || !p.options.GetPreStartRequired() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, preStartTimeout)
	defer cancel()
	_, err := p.client.PreStartContainer(ctx, &deviceapi.PreStartContainerRequest{DevicesIds: ids})
	return err
}

func (l *Lent) add(answer *deviceapi.ContainerAllocateResponse) {
	maps.Copy(l.Env, answer.Envs)
	for _, m := range answer.Mounts {
		l.Mounts = append(l.Mounts, Mount{HostPath: m.HostPath, ContainerPath: m.ContainerPath, ReadOnly: m.ReadOnly})
	}
	for _, d := range answer.Devices {
		l.Devices = append(l.Devices, Device{d.HostPath, d.ContainerPath, d.Permissions})
	}
}
