package provider

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/vk-metal/vk-metal/internal/claims"
	"github.com/vk-metal/vk-metal/internal/devices"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

const (
	opClaims = "claims"
	// opUnclaim gives the claims back, before the pod's end is reported.
	opUnclaim = "unclaim"
	// claimRetry is how soon what failed is tried again: a driver may come at any time.
	claimRetry = 2 * time.Second
)

// prepareClaims has the pod's ResourceClaims made ready.
func (w *worker) prepareClaims(pod *corev1.Pod) *op {
	if !claims.Wants(pod) {
		return &op{done: true}
	}
	o := w.begin(opClaims, claimRetry, func(ctx context.Context) (any, error) {
		return nil, w.p.deps.Claims.Prepare(ctx, pod)
	})
	if o.err != nil && !o.done {
		w.event(pod, nil, corev1.EventTypeWarning, "FailedPrepareDynamicResources", "Failed to prepare dynamic resources: "+o.err.Error())
	}
	return o
}

// claimed adds the devices of the container's claims.
func (w *worker) claimed(pod *corev1.Pod, c podplan.Container, lent *devices.Lent) error {
	if !claims.Wants(pod) {
		return nil
	}
	names, err := w.p.deps.Claims.Devices(pod, &c.Container)
	if err != nil {
		return err
	}
	return lent.AddCDI(cdi.DefaultSpecDirs, names)
}

// unclaimed gives the claims of a pod without processes back, and says whether that is done.
// Only then is its end told: others may get the devices from then on.
func (w *worker) unclaimed(pod *corev1.Pod) bool {
	if w.p.deps.Claims == nil {
		return true
	}
	w.mu.Lock()
	preparing := w.ops[opClaims] != nil && w.ops[opClaims].running
	w.mu.Unlock()
	if preparing {
		w.cancelOps(func(key string) bool { return key == opClaims })
		return false
	}
	if _, held := w.p.deps.Claims.Pods()[string(w.uid)]; !held {
		return true
	}
	o := w.begin(opUnclaim, claimRetry, func(ctx context.Context) (any, error) {
		return nil, w.p.deps.Claims.Release(ctx, string(w.uid))
	})
	if o.err != nil && !o.done {
		w.event(pod, nil, corev1.EventTypeWarning, "FailedUnprepareDynamicResources", "Failed to unprepare dynamic resources: "+o.err.Error())
		w.log.Warn("Cannot give back the resource claims of an ended pod", "err", o.err)
	}
	return o.done
}
