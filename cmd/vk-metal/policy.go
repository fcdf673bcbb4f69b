package main

import (
	"context"

	"github.com/vk-metal/vk-metal/internal/policy"
	"github.com/vk-metal/vk-metal/netns"
	"github.com/vk-metal/vk-metal/provider"
)

// newPolicy makes the enforcement of network policies if the configuration asks for it.
func (a *agent) newPolicy() (err error) {
	if a.cfg.NetworkPolicy != "vk-metal" {
		return nil
	}
	options := policy.Options{NodeName: a.name, PodLinkGroup: netns.LinkGroup, Client: a.client, Log: a.log}
	if a.dnsCache != nil {
		options.Restricted = a.dnsCache.SetDirect
	}
	a.policy, err = policy.New(options)
	if err != nil {
		return err
	}
	a.metrics.MustRegister(a.policy.Collector())
	return nil
}

// admission is what pods wait for before they start; nil without policies.
func (a *agent) admission() provider.Admission {
	if a.policy == nil {
		return nil // and not an interface that holds nil
	}
	return a.policy
}

// runPolicy enforces. The agent is ready without it: pods wait, each with an event.
func (a *agent) runPolicy(ctx context.Context, ready func()) error {
	ready()
	if a.policy == nil {
		if err := policy.Remove(""); err != nil {
			a.log.Error("cannot remove the network policy rules of before", "err", err)
		}
		<-ctx.Done()
		return nil
	}
	defer a.policy.Close()
	return a.policy.Run(ctx)
}
