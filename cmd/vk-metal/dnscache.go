package main

import (
	"context"

	"github.com/vk-metal/vk-metal/internal/dnscache"
	"github.com/vk-metal/vk-metal/netns"
)

// newDNSCache makes the cache if the configuration asks for it.
func (a *agent) newDNSCache() (err error) {
	if !a.cfg.DNSCache {
		return nil
	}
	a.dnsCache, err = dnscache.New(dnscache.Options{Servers: a.cfg.ClusterDNS, PodLinkGroup: netns.LinkGroup, Log: a.log})
	if err != nil {
		return err
	}
	a.metrics.MustRegister(a.dnsCache)
	return nil
}

// runDNSCache runs it. The agent goes on without it: pods then ask the cluster's DNS.
func (a *agent) runDNSCache(ctx context.Context, ready func()) error {
	ready()
	if a.dnsCache == nil {
		if err := dnscache.Remove(""); err != nil {
			a.log.Error("cannot remove what a DNS cache of before left", "err", err)
		}
		<-ctx.Done()
		return nil
	}
	if err := a.dnsCache.Run(ctx); err != nil {
		a.log.Error("the DNS cache does not run; pods ask the cluster's DNS", "err", err)
	}
	<-ctx.Done()
	return nil
}
