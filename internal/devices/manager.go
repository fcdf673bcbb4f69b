package devices

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	deviceapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/vk-metal/vk-metal/internal/paths"
)

// Options of a Manager; Layout is required.
type Options struct {
	Layout paths.Layout
	// Changed is called after Resources may have changed. It must return quickly.
	Changed func()
	// Pods are those of the node, for who asks what they have; may be nil.
	Pods func() []*corev1.Pod
	// Claimed are the devices of a container's ResourceClaims, for the same; may be nil.
	Claimed func(*corev1.Pod, *corev1.Container) []*podresourcesapi.DynamicResource
	// SpecDirs have the specifications of CDI devices, those that go before others last; empty
	// means /etc/cdi and /var/run/cdi.
	SpecDirs []string
	Log      *slog.Logger
}

// Manager has the node's devices. It is safe for concurrent use.
type Manager struct {
	o     Options
	log   *slog.Logger
	begun time.Time

	mu      sync.Mutex
	plugins map[string]*plugin // by resource; registered now
	known   map[string]*pool   // by resource; also of plugins that have gone
	lent    loans
	group   sync.WaitGroup
}

// pool is what a plugin has, or had.
type pool struct {
	devices map[string]*deviceapi.Device // by ID
	// gone is since when the plugin has not been there; zero while it is.
	gone time.Time
}

// goneFor is how long the devices of a plugin that has gone are still counted as unhealthy
// ones, as with a kubelet.
const goneFor = 5 * time.Minute

// New makes a Manager and takes up what has been lent.
func New(o Options) (*Manager, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	if o.Pods == nil {
		o.Pods = func() []*corev1.Pod { return nil }
	}
	if len(o.SpecDirs) == 0 {
		o.SpecDirs = cdi.DefaultSpecDirs
	}
	m := &Manager{o: o, log: o.Log, begun: time.Now(), plugins: map[string]*plugin{}, known: map[string]*pool{}}
	resources, lent, err := readCheckpoint(m.checkpointPath())
	if err != nil {
		return nil, fmt.Errorf("take up lent devices: %w", err)
	}
	m.lent = lent
	for _, name := range resources {
		m.known[name] = &pool{gone: m.begun}
	}
	return m, nil
}

func (m *Manager) checkpointPath() string { return filepath.Join(m.o.Layout.Lib, "devices.json") }

// Resources are what the node has of each resource: all devices, and the healthy ones.
func (m *Manager) Resources() (capacity, allocatable corev1.ResourceList) {
	m.mu.Lock()
	defer m.mu.Unlock()
	capacity, allocatable = corev1.ResourceList{}, corev1.ResourceList{}
	for name, p := range m.known {
		all, healthy := len(p.devices), len(p.healthy())
		if !p.gone.IsZero() && time.Since(p.gone) > goneFor {
			all = 0
		}
		capacity[corev1.ResourceName(name)] = *resource.NewQuantity(int64(all), resource.DecimalSI)
		allocatable[corev1.ResourceName(name)] = *resource.NewQuantity(int64(healthy), resource.DecimalSI)
	}
	return capacity, allocatable
}

// healthy are the IDs of devices that can be lent, sorted.
func (p *pool) healthy() []string {
	var ids []string
	for id, d := range p.devices {
		if d.Health == deviceapi.Healthy && p.gone.IsZero() {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Release takes back what a pod has; idempotent.
func (m *Manager) Release(podUID string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lent[podUID] == nil {
		return nil
	}
	rest := maps.Clone(m.lent)
	delete(rest, podUID)
	if err := m.save(rest); err != nil {
		return fmt.Errorf("take back devices of pod %s: %w", podUID, err)
	}
	return nil
}

// save writes what is lent, and takes it over. The lock is held.
func (m *Manager) save(lent loans) error {
	if err := writeCheckpoint(m.checkpointPath(), slices.Sorted(maps.Keys(m.known)), lent); err != nil {
		return err
	}
	m.lent = lent
	return nil
}

// ErrNotYet says that a plugin has not registered since the agent began: it may yet.
var ErrNotYet = errors.New("its device plugin has not registered yet")

// registerPatience is how long plugins have for that.
const registerPatience = 2 * time.Minute
