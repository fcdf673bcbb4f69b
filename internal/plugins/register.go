package plugins

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const (
	// askTimeout is what a plugin has to say who it is and to hear the outcome.
	askTimeout = 10 * time.Second
	// registerTimeout bounds one registration; a CSI driver is asked about the node in it.
	registerTimeout = 2 * time.Minute
	maxDoublings    = 7
)

// registration is one socket's way to a registered plugin.
type registration struct {
	o      *Options
	socket string
	cancel context.CancelFunc
	done   chan struct{}
	info   *registerapi.PluginInfo // of a registered plugin; valid once done is closed
}

// run tries until the plugin is registered or ctx ends.
func (r *registration) run(ctx context.Context) {
	defer close(r.done)
	for try := 0; ; try++ {
		info, err := r.register(ctx)
		if err == nil {
			r.info = info
			r.o.Log.Info("plugin registered", "type", info.Type, "name", info.Name, "socket", r.socket)
			return
		}
		if ctx.Err() != nil {
			return
		}
		wait := r.o.Retry << min(try, maxDoublings)
		r.o.Log.Warn("cannot register a plugin, will retry", "socket", r.socket, "in", wait, "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (r *registration) register(ctx context.Context) (*registerapi.PluginInfo, error) {
	conn, err := grpc.NewClient("unix://"+r.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("dial plugin %s: %w", r.socket, err)
	}
	defer conn.Close()
	client := registerapi.NewRegistrationClient(conn)
	asking, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	info, err := client.GetInfo(asking, &registerapi.InfoRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask plugin %s who it is: %w", r.socket, err)
	}
	failure := r.accept(ctx, info)
	if err := r.tell(ctx, client, failure); err != nil && failure == nil {
		r.o.Handlers[info.Type].Deregister(info.Name, endpointOf(info, r.socket))
		return nil, err
	}
	return info, failure
}

// accept hands the plugin to its handler.
func (r *registration) accept(ctx context.Context, info *registerapi.PluginInfo) error {
	handler := r.o.Handlers[info.Type]
	if handler == nil {
		return fmt.Errorf("no handler registered for plugin type: %s at socket %s", info.Type, r.socket)
	}
	endpoint := endpointOf(info, r.socket)
	if err := handler.Validate(info.Name, endpoint, info.SupportedVersions); err != nil {
		return fmt.Errorf("plugin validation failed for plugin %s of type %s: %w", info.Name, info.Type, err)
	}
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	if err := handler.Register(ctx, info.Name, endpoint, info.SupportedVersions); err != nil {
		return fmt.Errorf("plugin registration failed for plugin %s of type %s: %w", info.Name, info.Type, err)
	}
	return nil
}

// tell says the outcome; a plugin that is not told of its success may end and come again.
func (r *registration) tell(ctx context.Context, client registerapi.RegistrationClient, failure error) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	status := &registerapi.RegistrationStatus{PluginRegistered: failure == nil}
	if failure != nil {
		status.Error = failure.Error()
	}
	if _, err := client.NotifyRegistrationStatus(ctx, status); err != nil {
		return fmt.Errorf("tell plugin %s the outcome: %w", r.socket, err)
	}
	return nil
}
