package devices

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/apimachinery/pkg/util/validation"
	deviceapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/vk-metal/vk-metal/internal/plugins"
)

// plugin is a registered device plugin.
type plugin struct {
	resource, endpoint string
	options            *deviceapi.DevicePluginOptions
	conn               *grpc.ClientConn
	client             deviceapi.DevicePluginClient
	cancel             context.CancelFunc
}

var _ plugins.Handler = (*Manager)(nil)

// Validate implements plugins.Handler: the name is the resource.
func (m *Manager) Validate(name, _ string, versions []string) error {
	if !slices.Contains(versions, deviceapi.Version) {
		return fmt.Errorf("manager version, %s, is not among plugin supported versions %v", deviceapi.Version, versions)
	}
	return checkResource(name)
}

// checkResource refuses names that are no extended resource's.
func checkResource(name string) error {
	domain, _, ok := strings.Cut(name, "/")
	if !ok || strings.HasSuffix(domain, "kubernetes.io") || strings.HasPrefix(name, "requests.") || len(validation.IsQualifiedName(name)) > 0 {
		return fmt.Errorf("the ResourceName %q is invalid", name)
	}
	return nil
}

// Register implements plugins.Handler. Unlike by Registration.Register the plugin serves already.
func (m *Manager) Register(ctx context.Context, name, endpoint string, _ []string) error {
	p, err := dial(name, endpoint)
	if err != nil {
		return err
	}
	p.options, err = p.client.GetDevicePluginOptions(ctx, &deviceapi.Empty{})
	if err != nil {
		p.conn.Close()
		return fmt.Errorf("ask device plugin %s for its options: %w", name, err)
	}
	m.take(p)
	return nil
}

// Deregister implements plugins.Handler. The end of the plugin's stream says the same.
func (m *Manager) Deregister(name, endpoint string) {
	m.mu.Lock()
	p := m.plugins[name]
	m.mu.Unlock()
	if p != nil && p.endpoint == endpoint {
		p.cancel()
	}
}

func dial(name, endpoint string) (*plugin, error) {
	conn, err := grpc.NewClient("unix://"+endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("dial device plugin %s: %w", name, err)
	}
	return &plugin{resource: name, endpoint: endpoint, conn: conn, client: deviceapi.NewDevicePluginClient(conn)}, nil
}

// take puts the plugin in the place of another one of its resource and follows it.
func (m *Manager) take(p *plugin) {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	m.mu.Lock()
	old := m.plugins[p.resource]
	m.plugins[p.resource] = p
	if m.known[p.resource] == nil {
		m.known[p.resource] = &pool{gone: time.Now()}
	}
	if err := m.save(m.lent); err != nil { // the resource is to be known after a reboot
		m.log.Error("cannot write down the resource of a device plugin", "resource", p.resource, "err", err)
	}
	m.mu.Unlock()
	if old != nil {
		old.cancel()
	}
	m.group.Go(func() { m.follow(ctx, p) })
}

// follow takes up what the plugin says of its devices until it ends.
func (m *Manager) follow(ctx context.Context, p *plugin) {
	defer p.conn.Close()
	defer p.cancel()
	err := m.watch(ctx, p)
	m.mu.Lock()
	current := m.plugins[p.resource] == p
	if current {
		delete(m.plugins, p.resource)
		m.known[p.resource].gone = time.Now()
	}
	m.mu.Unlock()
	if !current {
		return
	}
	m.log.Info("device plugin has ended, its devices are unhealthy", "resource", p.resource, "err", err)
	m.o.Changed()
	time.AfterFunc(goneFor+time.Second, m.o.Changed)
}

func (m *Manager) watch(ctx context.Context, p *plugin) error {
	stream, err := p.client.ListAndWatch(ctx, &deviceapi.Empty{})
	if err != nil {
		return err
	}
	for {
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		if !m.update(p, answer.Devices) {
			return errors.New("another plugin has taken its place")
		}
		m.o.Changed()
	}
}

// update stores a plugin's list; false if another plugin has taken its place.
func (m *Manager) update(p *plugin, list []*deviceapi.Device) bool {
	devices := make(map[string]*deviceapi.Device, len(list))
	for _, d := range list {
		devices[d.ID] = d
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.plugins[p.resource] != p {
		return false
	}
	m.known[p.resource] = &pool{devices: devices}
	return true
}
