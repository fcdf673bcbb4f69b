package provider

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/staticpods"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

// What a kubelet says of pods that it ends because the node goes down
// (pkg/kubelet/nodeshutdown).
const (
	shutdownReason  = "Terminated"
	shutdownMessage = "Pod was terminated in response to imminent node shutdown."
	shutdownRefusal = "NodeShutdown"
)

// toldWait is how long the end of a pod may take to get to the API server beyond its death.
const toldWait = 3 * time.Second

// down is whether the node is going down.
type down struct {
	mu sync.Mutex
	is bool
}

func (d *down) set(is bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.is = is
}

func (d *down) get() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.is
}

// ShuttingDown says whether pods are refused because the node goes down.
func (p *Provider) ShuttingDown() bool { return p.down.get() }

// ShutdownCancelled lets pods in again; those that were ended stay so.
func (p *Provider) ShutdownCancelled() { p.down.set(false) }

// Shutdown ends all pods with their preStop hooks: the ordinary ones first, in grace less
// critical, then the critical ones in critical. It returns when all are dead and the API
// server knows, or their time is over.
func (p *Provider) Shutdown(ctx context.Context, grace, critical time.Duration) {
	p.down.set(true)
	var first, last []*worker
	for _, w := range p.all() {
		pod, _ := w.current()
		if isFinal(pod.Status.Phase) {
			continue
		}
		if isCritical(pod) {
			last = append(last, w)
		} else {
			first = append(first, w)
		}
	}
	p.log.Info("Ending pods before the node goes down", "pods", len(first), "critical", len(last))
	p.endAll(ctx, first, grace-critical)
	p.endAll(ctx, last, critical)
}

func isCritical(pod *corev1.Pod) bool {
	return staticpods.IsUID(pod.UID) || pod.Spec.Priority != nil && *pod.Spec.Priority >= podplan.SystemCritical
}

// endAll ends pods side by side and waits for them.
func (p *Provider) endAll(ctx context.Context, workers []*worker, grace time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, grace+time.Second) // KILL comes at its end
	defer cancel()
	for _, w := range workers {
		w.evict(evictRecord{podplan.Ending{Reason: shutdownReason, Message: shutdownMessage, Disrupts: true}, grace})
	}
	late := 0
	for _, w := range workers {
		if !await(ctx, w.dead) {
			late++
		}
	}
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), toldWait)
	defer cancel()
	for _, w := range workers {
		await(ctx, w.told)
	}
	p.log.Info("Pods have ended before the node goes down", "pods", len(workers)-late, "late", late)
}

func await(ctx context.Context, c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	case <-ctx.Done():
		return false
	}
}
