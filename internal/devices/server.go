package devices

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	deviceapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"
)

const kubeletSocket = "kubelet.sock"

// Run serves the two sockets until ctx ends. Plugins notice a new agent by their own sockets,
// which are removed, and by ours, which is new: they register again.
func (m *Manager) Run(ctx context.Context, ready func()) error {
	if err := removeSockets(m.o.Layout.DevicePlugins()); err != nil {
		return fmt.Errorf("serve device plugins: %w", err)
	}
	registration := grpc.NewServer()
	deviceapi.RegisterRegistrationServer(registration, registrar{m: m})
	resources := grpc.NewServer()
	podresourcesapi.RegisterPodResourcesListerServer(resources, lister{m: m})
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range []struct {
		server *grpc.Server
		dir    string
	}{{resources, m.o.Layout.PodResources()}, {registration, m.o.Layout.DevicePlugins()}} {
		listener, err := listen(filepath.Join(s.dir, kubeletSocket))
		if err != nil {
			registration.Stop()
			resources.Stop()
			return errors.Join(fmt.Errorf("serve device plugins: %w", err), group.Wait())
		}
		stop := context.AfterFunc(ctx, s.server.Stop)
		defer stop()
		group.Go(func() error { return s.server.Serve(listener) })
	}
	ready()
	err := group.Wait()
	m.close()
	if ctx.Err() != nil && (err == nil || errors.Is(err, grpc.ErrServerStopped)) {
		return nil
	}
	return err
}

// close ends the connections to all plugins; what they have lent stays lent.
func (m *Manager) close() {
	m.mu.Lock()
	for _, p := range m.plugins {
		p.cancel()
	}
	clear(m.plugins)
	m.mu.Unlock()
	m.group.Wait()
}

func removeSockets(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type() != fs.ModeSocket {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return net.Listen("unix", path)
}

// registrar is what plugins register with.
type registrar struct {
	deviceapi.UnimplementedRegistrationServer
	m *Manager
}

// Register takes a plugin, which serves on a socket beside ours.
func (r registrar) Register(_ context.Context, request *deviceapi.RegisterRequest) (*deviceapi.Empty, error) {
	if !slices.Contains(deviceapi.SupportedVersions[:], request.Version) {
		return nil, fmt.Errorf("requested API version %q is not supported by kubelet. Supported version is %q", request.Version, deviceapi.SupportedVersions)
	}
	if err := checkResource(request.ResourceName); err != nil {
		return nil, err
	}
	if request.Endpoint != filepath.Base(request.Endpoint) {
		return nil, fmt.Errorf("endpoint %q is not the name of a socket in %s", request.Endpoint, r.m.o.Layout.DevicePlugins())
	}
	p, err := dial(request.ResourceName, filepath.Join(r.m.o.Layout.DevicePlugins(), request.Endpoint))
	if err != nil {
		return nil, err
	}
	if p.options = request.Options; p.options == nil {
		p.options = &deviceapi.DevicePluginOptions{}
	}
	r.m.log.Info("device plugin registered", "resource", p.resource)
	r.m.take(p)
	return &deviceapi.Empty{}, nil
}
