package claims

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	drav1 "k8s.io/kubelet/pkg/apis/dra/v1"
	drav1beta1 "k8s.io/kubelet/pkg/apis/dra/v1beta1"
)

// callTimeout bounds one call, as a kubelet's.
const callTimeout = 45 * time.Second

// plugin is one registered socket of a driver. While a driver is updated it may have two.
type plugin struct {
	endpoint string
	conn     *grpc.ClientConn
	client   drav1.DRAPluginClient
}

// Validate implements plugins.Handler.
func (m *Manager) Validate(name, endpoint string, versions []string) error {
	if !slices.Contains(versions, drav1.DRAPluginService) && !slices.Contains(versions, drav1beta1.DRAPluginService) {
		return fmt.Errorf("driver %s at %s has the services %q; known are %s and %s", name, endpoint, versions, drav1.DRAPluginService, drav1beta1.DRAPluginService)
	}
	return nil
}

// Register implements plugins.Handler.
func (m *Manager) Register(_ context.Context, name, endpoint string, versions []string) error {
	conn, err := grpc.NewClient("unix://"+endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("dial driver %s at %s: %w", name, endpoint, err)
	}
	p := &plugin{endpoint: endpoint, conn: conn, client: drav1.NewDRAPluginClient(conn)}
	if !slices.Contains(versions, drav1.DRAPluginService) {
		p.client = drav1beta1.V1Beta1ClientWrapper{DRAPluginClient: drav1beta1.NewDRAPluginClient(conn)}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drop(name, endpoint)
	m.drivers[name] = append(m.drivers[name], p)
	return nil
}

// Deregister implements plugins.Handler.
func (m *Manager) Deregister(name, endpoint string) {
	m.mu.Lock()
	m.drop(name, endpoint)
	gone := len(m.drivers[name]) == 0
	m.mu.Unlock()
	if gone {
		m.log.Info("the plugin of a DRA driver has gone", "driver", name)
		select {
		case m.sweep <- struct{}{}:
		default:
		}
	}
}

// drop forgets a socket; the lock is held. Calls that are under way end with an error.
func (m *Manager) drop(name, endpoint string) {
	m.drivers[name] = slices.DeleteFunc(m.drivers[name], func(p *plugin) bool {
		if p.endpoint != endpoint {
			return false
		}
		_ = p.conn.Close()
		return true
	})
	if len(m.drivers[name]) == 0 {
		delete(m.drivers, name)
	}
}

// driver is the plugin to be asked.
func (m *Manager) driver(name string) (*plugin, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := m.drivers[name]
	if len(list) == 0 {
		return nil, fmt.Errorf("DRA driver %s is not registered", name)
	}
	return list[len(list)-1], nil
}
