package main

import (
	"context"

	"github.com/vk-metal/vk-metal/netns"
)

// podNetwork is who gives pods their network, here or by plugins.
type podNetwork interface {
	netns.Network
	Run(ctx context.Context) error
	Close()
}

// openNetwork opens the pod network that the configuration names.
func (a *agent) openNetwork() (err error) {
	if a.cfg.Network.Plugin != "cni" {
		a.pods.own, err = netns.NewManager(netns.Options{Layout: a.g.layout, Log: a.log})
		a.pods.network = a.pods.own
		return err
	}
	plugins, err := netns.NewCNI(netns.CNIOptions{
		Layout: a.g.layout, ConfDir: a.cfg.Network.CNIConfDir, BinDirs: a.cfg.Network.CNIBinDirs, Log: a.log,
		Changed: func() {
			if a.node != nil {
				a.node.Changed()
			}
		},
	})
	if err != nil {
		return err
	}
	a.pods.network = plugins
	a.metrics.MustRegister(plugins.Metrics()...)
	return nil
}
