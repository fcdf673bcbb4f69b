package provider

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-metal/vk-metal/internal/pressure"
	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/systemd"
)

// underPressure says why a pod is not admitted to a node that is short of something.
func (p *Provider) underPressure(pod *corev1.Pod) *podplan.Refusal {
	if p.deps.Node.Pressure == nil || isCritical(pod) {
		return nil
	}
	return podplan.UnderPressure(pod, p.deps.Node.Pressure())
}

// Candidates are the admitted pods that the node may end, with what they use of the signal's
// resource. Disks are measured now, which takes its time.
func (p *Provider) Candidates(ctx context.Context, s pressure.Signal) ([]pressure.Candidate, error) {
	measure, err := p.meter(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("measure pods: %w", err)
	}
	var list []pressure.Candidate
	for _, w := range p.evictable() {
		pod, _ := w.current()
		usage, err := measure(w, pod)
		if err != nil {
			w.log.Warn("Cannot tell what a pod uses", "err", err)
		}
		list = append(list, pressure.Candidate{Pod: pod, Usage: usage})
	}
	return list, ctx.Err()
}

// evictable are the workers of admitted pods that are neither critical nor told to end already.
func (p *Provider) evictable() []*worker {
	p.granted.mu.Lock()
	defer p.granted.mu.Unlock()
	var list []*worker
	for uid := range p.granted.pods {
		w := p.byUID(uid)
		if w == nil {
			continue
		}
		if pod, _ := w.current(); !isCritical(pod) && !isFinal(pod.Status.Phase) && !w.toEnd() {
			list = append(list, w)
		}
	}
	return list
}

// toEnd says whether the node has decided to end the pod.
func (w *worker) toEnd() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.eviction != nil
}

// meter measures one pod after the other; no usage means that it is not known.
type meter func(w *worker, pod *corev1.Pod) (*pressure.Usage, error)

func (p *Provider) meter(ctx context.Context, s pressure.Signal) (meter, error) {
	if s.Condition() == corev1.NodeDiskPressure {
		return func(w *worker, pod *corev1.Pod) (*pressure.Usage, error) {
			used, err := w.storageUsage(ctx, pod)
			if err != nil {
				return nil, err
			}
			return &pressure.Usage{Disk: used.Total(), Inodes: used.Inodes, Containers: used.Containers}, nil
		}, nil
	}
	if p.deps.Usage == nil {
		return func(*worker, *corev1.Pod) (*pressure.Usage, error) { return nil, nil }, nil
	}
	units, err := p.deps.Runtime.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list units: %w", err)
	}
	byPod := map[types.UID][]systemd.UnitState{}
	for _, u := range units {
		if uid := types.UID(u.Identity.PodUID); u.Running() {
			byPod[uid] = append(byPod[uid], u)
		}
	}
	return func(w *worker, pod *corev1.Pod) (*pressure.Usage, error) { return p.groupUsage(ctx, pod, byPod[w.uid]) }, nil
}

// groupUsage reads the cgroups of a pod's slice and of its running units.
func (p *Provider) groupUsage(ctx context.Context, pod *corev1.Pod, units []systemd.UnitState) (*pressure.Usage, error) {
	slice, err := p.deps.Usage.Stats(ctx, podplan.SliceName(string(pod.UID), podplan.QOS(pod)))
	if errors.Is(err, systemd.ErrNoCgroup) {
		return &pressure.Usage{}, nil // nothing of it runs
	}
	if err != nil {
		return nil, fmt.Errorf("measure slice: %w", err)
	}
	usage := &pressure.Usage{Memory: int64(slice.MemoryWorkingSet), Processes: int64(slice.Processes), Containers: map[string]int64{}}
	for _, u := range units {
		stats, err := p.deps.Usage.Stats(ctx, u.Name)
		if errors.Is(err, systemd.ErrNoCgroup) {
			continue // ended meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("measure container %s: %w", u.Identity.Container, err)
		}
		usage.Containers[u.Identity.Container] += int64(stats.MemoryWorkingSet)
	}
	return usage, nil
}

// Evict begins to end a pod for want of a resource, in grace at most. The channel is closed
// when the pod holds nothing of the node any more; it is nil if the pod is not one that the
// node may end, or is ended already.
func (p *Provider) Evict(uid types.UID, message string, grace time.Duration) <-chan struct{} {
	w := p.byUID(uid)
	if w == nil {
		return nil
	}
	pod, _ := w.current()
	if isCritical(pod) || isFinal(pod.Status.Phase) {
		return nil
	}
	if !w.evict(evictRecord{podplan.Ending{Reason: podplan.ReasonEvicted, Message: message, Disrupts: true}, grace}) {
		return nil
	}
	w.event(pod, nil, corev1.EventTypeWarning, podplan.ReasonEvicted, message)
	return w.freed
}
