package main

import (
	"context"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"

	"github.com/vk-metal/vk-metal/internal/services"
	"github.com/vk-metal/vk-metal/netns"
)

// newServiceProxy makes the proxy unless the configuration leaves Services to somebody else.
func (a *agent) newServiceProxy(factory informers.SharedInformerFactory) (err error) {
	if a.cfg.ServiceProxy == "external" {
		return nil
	}
	a.proxy, err = services.New(services.Options{
		Node: a.serviceFacts(nil), PodLinkGroup: netns.LinkGroup, Log: a.log,
		Services: factory.Core().V1().Services(), Slices: factory.Discovery().V1().EndpointSlices(),
	})
	if err == nil {
		a.metrics.MustRegister(a.proxy.Collector())
	}
	return err
}

// runServiceProxy runs it. The agent is ready without it: with the API server down, or
// Services forbidden, the rules of before stay.
func (a *agent) runServiceProxy(ctx context.Context, ready func()) error {
	ready()
	if a.proxy == nil {
		if err := services.Remove(""); err != nil {
			a.log.Error("cannot remove the service rules of before", "err", err)
		}
		<-ctx.Done()
		return nil
	}
	defer a.proxy.Close()
	return a.proxy.Run(ctx, sync.OnceFunc(func() { go trimMemory() }))
}

// serviceFacts are what of our Node matters to Services.
func (a *agent) serviceFacts(self *corev1.Node) services.NodeFacts {
	facts := services.NodeFacts{Name: a.name, Addresses: a.addresses}
	if self != nil {
		facts.Zone = self.Labels[corev1.LabelTopologyZone]
		facts.Leaving = self.DeletionTimestamp != nil || slices.ContainsFunc(self.Spec.Taints, func(t corev1.Taint) bool {
			return t.Key == autoscalerTaint
		})
	}
	return facts
}

// autoscalerTaint is on nodes that the cluster autoscaler is about to delete.
const autoscalerTaint = "ToBeDeletedByClusterAutoscaler"

func (a *agent) tellServiceProxy(self *corev1.Node) {
	if a.proxy != nil {
		a.proxy.SetNode(a.serviceFacts(self))
	}
}

// readiness is where pods' readiness goes at once; nil without a proxy of ours.
func (a *agent) readiness() func([]netip.Addr, bool) {
	if a.proxy == nil {
		return nil
	}
	return a.proxy.SetReady
}
