package csi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilversion "k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/kubernetes"

	"github.com/vk-metal/vk-metal/internal/keylock"
	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/internal/plugins"
)

// callTimeout bounds one call of a driver, as a kubelet's does.
const callTimeout = 2 * time.Minute

// Options of a Manager; NodeName, Layout and Client are required.
type Options struct {
	NodeName string
	Layout   paths.Layout
	Client   kubernetes.Interface
	// DriversChanged is called after drivers came or went, InUseChanged after what InUse
	// returns may have changed. They must return quickly.
	DriversChanged, InUseChanged func()
	Log                          *slog.Logger
}

// Manager is the node's side of CSI. It is safe for concurrent use.
type Manager struct {
	o   Options
	log *slog.Logger

	mu        sync.Mutex
	drivers   map[string]*driver
	published map[place]*publication
	tokens    map[tokenKey]heldToken

	handles keylock.Mutex // by driver and handle
	node    sync.Mutex    // changes of Node and CSINode
	plan    chan struct{} // has one when it is to be seen anew whom to ask when for allocatable
}

var _ plugins.Handler = (*Manager)(nil)

// driver is a registered driver.
type driver struct {
	name, endpoint string
	conn           *grpc.ClientConn
	client         csispec.NodeClient
}

// New makes a Manager and takes up what this boot has published.
func New(o Options) (*Manager, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.DriversChanged == nil {
		o.DriversChanged = func() {}
	}
	if o.InUseChanged == nil {
		o.InUseChanged = func() {}
	}
	m := &Manager{
		o: o, log: o.Log, drivers: map[string]*driver{}, published: map[place]*publication{},
		tokens: map[tokenKey]heldToken{}, plan: make(chan struct{}, 1),
	}
	if err := m.loadPublished(); err != nil {
		return nil, fmt.Errorf("take up CSI volumes: %w", err)
	}
	return m, nil
}

// Close ends the connections to all drivers.
func (m *Manager) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.drivers {
		d.conn.Close()
	}
	clear(m.drivers)
}

// Validate implements plugins.Handler: drivers of CSI 1.x are taken.
func (m *Manager) Validate(name, _ string, versions []string) error {
	if err := checkElement("driver", name); err != nil {
		return err
	}
	for _, v := range versions {
		version, err := utilversion.ParseGeneric(v)
		if err != nil {
			return fmt.Errorf("read CSI version %q: %w", v, err)
		}
		if version.Major() == 1 {
			return nil
		}
	}
	return fmt.Errorf("none of the CSI versions %q is supported, 1.x is", versions)
}

// Register implements plugins.Handler.
func (m *Manager) Register(ctx context.Context, name, endpoint string, _ []string) error {
	conn, err := grpc.NewClient("unix://"+strings.TrimPrefix(endpoint, "unix://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("dial CSI driver %s: %w", name, err)
	}
	d := &driver{name: name, endpoint: endpoint, conn: conn, client: csispec.NewNodeClient(conn)}
	info, err := d.client.NodeGetInfo(ctx, &csispec.NodeGetInfoRequest{})
	if err != nil {
		conn.Close()
		return fmt.Errorf("ask CSI driver %s about the node: %w", name, err)
	}
	if err := m.announce(ctx, name, info); err != nil {
		conn.Close()
		return err
	}
	m.mu.Lock()
	old := m.drivers[name]
	m.drivers[name] = d
	m.mu.Unlock()
	if old != nil {
		old.conn.Close()
	}
	m.replan()
	m.o.DriversChanged()
	return nil
}

// withdrawTimeout bounds what is told to the cluster when a driver has gone.
const withdrawTimeout = 30 * time.Second

// Deregister implements plugins.Handler.
func (m *Manager) Deregister(name, endpoint string) {
	m.mu.Lock()
	d := m.drivers[name]
	if d == nil || d.endpoint != endpoint {
		m.mu.Unlock()
		return // another one has taken its place
	}
	delete(m.drivers, name)
	m.mu.Unlock()
	m.replan()
	d.conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), withdrawTimeout)
	defer cancel()
	if err := m.withdraw(ctx, name); err != nil {
		m.log.Warn("cannot tell the cluster that a CSI driver has gone", "driver", name, "err", err)
	}
	m.o.DriversChanged()
}

// driver finds a registered driver, in the kubelet's words if there is none.
func (m *Manager) driver(name string) (*driver, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d := m.drivers[name]; d != nil {
		return d, nil
	}
	return nil, fmt.Errorf("driver name %s not found in the list of registered CSI drivers", name)
}

// capabilities asks what the driver's node service can do.
func (d *driver) capabilities(ctx context.Context) (capabilities, error) {
	resp, err := d.client.NodeGetCapabilities(ctx, &csispec.NodeGetCapabilitiesRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask CSI driver %s for its capabilities: %w", d.name, err)
	}
	caps := capabilities{}
	for _, c := range resp.GetCapabilities() {
		caps[c.GetRpc().GetType()] = true
	}
	return caps, nil
}

type capabilities map[csispec.NodeServiceCapability_RPC_Type]bool

const (
	canStage       = csispec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME
	canExpand      = csispec.NodeServiceCapability_RPC_EXPAND_VOLUME
	canStats       = csispec.NodeServiceCapability_RPC_GET_VOLUME_STATS
	canMountGroup  = csispec.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP
	canMultiWriter = csispec.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER
)

// object is the driver's CSIDriver object, an empty one if there is none: it is optional. exists
// says which.
func (m *Manager) object(ctx context.Context, name string) (spec storagev1.CSIDriverSpec, exists bool, err error) {
	d, err := m.o.Client.StorageV1().CSIDrivers().Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return spec, false, nil
	case err != nil:
		return spec, false, fmt.Errorf("read CSIDriver %s: %w", name, err)
	}
	return d.Spec, true, nil
}

// supports says why volumes of this lifecycle cannot be had of the driver.
func supports(name string, spec storagev1.CSIDriverSpec, exists bool, mode storagev1.VolumeLifecycleMode) error {
	modes := spec.VolumeLifecycleModes
	if len(modes) == 0 {
		modes = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}
	}
	switch {
	case !exists && mode == storagev1.VolumeLifecycleEphemeral:
		return fmt.Errorf("volume mode %q not supported by driver %s (no CSIDriver object)", mode, name)
	case exists && !slices.Contains(modes, mode):
		return fmt.Errorf("volume mode %q not supported by driver %s (only supports %q)", mode, name, modes)
	}
	return nil
}

// Drivers are the names of the registered drivers, sorted.
func (m *Manager) Drivers() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.drivers))
}

// checkElement refuses what must not become one element of a path.
func checkElement(what, s string) error {
	if s == "" || s == "." || s == ".." || len(s) > 255 || strings.ContainsAny(s, "/\x00") {
		return fmt.Errorf("%s %q cannot name a directory", what, s)
	}
	return nil
}

var errNoHandle = errors.New("the volume has no volumeHandle")
