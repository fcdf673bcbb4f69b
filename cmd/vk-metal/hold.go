package main

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"

	"github.com/vk-metal/vk-metal/internal/endpoints"
	"github.com/vk-metal/vk-metal/provider"
)

// newStopHold makes what holds the end of deleted pods back: from the service proxy's
// slices where it runs, else from a watch for each Service of a local pod, which run runs.
func (a *agent) newStopHold(factory informers.SharedInformerFactory) (hold provider.HoldOptions, run func(context.Context, func()) error, err error) {
	idle := func(ctx context.Context, ready func()) error {
		ready()
		<-ctx.Done()
		return nil
	}
	if !a.cfg.StopHold.Enabled {
		return hold, idle, nil
	}
	hold.Settle, hold.Percent = a.cfg.StopHold.SettleTime, a.cfg.StopHold.MaxGracePercent
	hold.Forbidden = func() {
		const message = "the cluster does not let this node see EndpointSlices, so pods are stopped while clients are still sent to them: " +
			"apply vk-metal's node RBAC manifest (kubectl apply -f /usr/share/vk-metal/manifests/node-rbac.yaml)"
		a.log.Warn("Pods are stopped while clients are still sent to them", "err", message)
		a.recorder.Event(a.nodeReference(), corev1.EventTypeWarning, "StopHoldForbidden", message)
	}
	services := factory.Core().V1().Services()
	if a.proxy != nil {
		hold.Endpoints, err = endpoints.NewShared(a.name, factory.Discovery().V1().EndpointSlices().Informer(), services.Lister(), a.proxy.Forbidden)
		return hold, idle, err
	}
	selected, err := endpoints.NewSelected(a.name, a.client, services, a.log)
	hold.Endpoints = selected
	return hold, func(ctx context.Context, ready func()) error {
		ready()
		return selected.Run(ctx)
	}, err
}
