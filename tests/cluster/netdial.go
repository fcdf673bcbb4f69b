package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"

	"github.com/vishvananda/netns"

	"github.com/vk-metal/vk-metal/tests/cluster/controlplane"
)

// Dial connects from the control plane's namespace, which has routes to all pods: the
// way of a client outside of the nodes. The connection may be used anywhere.
func (c *Cluster) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	endpoint, err := c.Rig.Endpoint(controlplane.EndpointName(0))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		conn, err := dialIn(ctx, endpoint.NetnsPath, network, address)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// dialIn enters the namespace with the calling thread. The address must be an IP
// address with one family: another dial would start threads elsewhere.
func dialIn(ctx context.Context, path, network, address string) (net.Conn, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open namespace %s: %w", path, err)
	}
	if err := netns.Set(ns); err != nil {
		return nil, errors.Join(fmt.Errorf("enter namespace %s: %w", path, err), ns.Close())
	}
	conn, err := (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, address)
	return conn, errors.Join(err, ns.Close())
}
