package provider

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

// allocations are the resources that this node has granted, by pod. What a pod was
// granted is in its directory too, so that a new agent judges no running pod again.
type allocations struct {
	mu   sync.Mutex
	pods map[types.UID]*corev1.Pod // as granted
	// deferred are the pods whose resize waits for others to go or to shrink.
	deferred map[types.UID]podplan.Deferred
	// leaving are the pods whose object is gone while their processes end. The scheduler has
	// given their place away, and a kubelet does not count them either.
	leaving map[types.UID]bool
}

// allocationFile is what a pod was granted; there is none before it was admitted, nor once
// all its processes have ended.
const allocationFile = "allocation.json"

func allocationPath(layout paths.Layout, uid string) string {
	return filepath.Join(layout.PodRun(uid), allocationFile)
}

// loadAllocations takes up what other agents granted, before anything new is judged.
func (p *Provider) loadAllocations() error {
	entries, err := os.ReadDir(filepath.Dir(p.deps.Layout.PodRun("x")))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list granted resources: %w", err)
	}
	for _, e := range entries {
		granted, err := loadAllocation(p.deps.Layout, e.Name())
		if err != nil {
			return err
		}
		if granted == nil {
			continue
		}
		if pod, err := loadPod(p.deps.Layout, e.Name()); err == nil {
			p.granted.pods[pod.UID] = podplan.Granted(pod, granted)
		}
	}
	return nil
}

// loadAllocation returns nil for a pod that was not admitted.
func loadAllocation(layout paths.Layout, uid string) (podplan.Allocation, error) {
	var granted podplan.Allocation
	err := readJSON(allocationPath(layout, uid), &granted)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read what pod %s was granted: %w", uid, err)
	}
	return granted, nil
}

// place is what a pod is compared with. The lock is held.
func (p *Provider) place(uid types.UID) podplan.Place {
	var place podplan.Place
	if p.deps.Node.Allocatable != nil {
		place.Allocatable = p.deps.Node.Allocatable()
	}
	if p.deps.Node.Self != nil {
		place.Node = p.deps.Node.Self()
	}
	for other, pod := range p.granted.pods {
		if other != uid && !p.granted.leaving[other] {
			place.Others = append(place.Others, pod)
		}
	}
	return place
}

// allocate returns the pod with the resources that it was granted, or why the node does
// not take it. Only the worker's loop calls it.
func (w *worker) allocate(pod *corev1.Pod, gone bool) (*corev1.Pod, *podplan.Refusal, error) {
	if gone && w.grant != nil && w.p.granted.leave(w.uid) {
		w.p.retryResizes()
	}
	switch {
	case w.rejected != nil:
		return pod, w.rejected, nil
	case w.grant == nil && (gone || pod.DeletionTimestamp != nil || isFinal(pod.Status.Phase)):
		return pod, nil, nil
	case w.grant == nil:
		ready, refused := w.allocateDevices(pod)
		if !ready {
			return pod, nil, errNoRoomYet
		}
		if w.rejected = refused; refused != nil {
			return pod, refused, nil
		}
		if err := w.admit(pod); err != nil || w.rejected != nil {
			return pod, w.rejected, err
		}
	case podplan.Resizing(pod, w.grant) && !gone && pod.DeletionTimestamp == nil:
		if err := w.admitResize(pod); err != nil {
			return pod, nil, err
		}
	default:
		w.settle()
	}
	return podplan.Granted(pod, w.grant), nil, nil
}

// leave gives the pod's place away before its processes have ended, and says whether that is new.
func (a *allocations) leave(uid types.UID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, has := a.pods[uid]; !has || a.leaving[uid] {
		return false
	}
	a.leaving[uid] = true
	return true
}

// admit judges a pod that is new to this node.
func (w *worker) admit(pod *corev1.Pod) error {
	granted := &w.p.granted
	granted.mu.Lock()
	defer granted.mu.Unlock()
	if !w.ran() {
		if w.p.down.get() {
			w.rejected = &podplan.Refusal{Field: "spec.nodeName", Admission: shutdownRefusal, Reason: "Pod was rejected as the node is shutting down."}
			return nil
		}
		if w.rejected = w.p.underPressure(pod); w.rejected != nil {
			w.log.Info("Pod is not admitted", "reason", w.rejected.Admission, "message", w.rejected.Reason)
			return nil
		}
		place := w.p.place(w.uid)
		if w.rejected = podplan.Admit(pod, place); w.rejected != nil {
			if victims := podplan.Preempt(pod, w.rejected, place, isCritical); len(victims) > 0 {
				w.rejected = nil
				w.p.preempt(pod, victims)
				return errNoRoomYet
			}
			w.log.Info("Pod is not admitted", "reason", w.rejected.Admission, "message", w.rejected.Reason)
			return nil
		}
	}
	return w.grantAll(pod)
}

// ran says whether this node has run the pod since it booted: agents before this one may
// have admitted it without writing so.
func (w *worker) ran() bool {
	for _, list := range w.attempts {
		for _, a := range list {
			if !a.rec.Imported {
				return true
			}
		}
	}
	return false
}

// grantAll gives the pod what it asks for. The lock of the allocations is held.
func (w *worker) grantAll(pod *corev1.Pod) error {
	grant := podplan.AllocationOf(pod)
	err := w.step("allocate", func() error { return writeJSON(allocationPath(w.p.deps.Layout, string(w.uid)), grant) })
	if err != nil {
		return err
	}
	w.grant = grant
	w.p.granted.pods[w.uid] = pod
	return nil
}

// admitResize grants a running pod other resources, or keeps why not. Those who go before it, or
// may now have what they wait for, are woken.
func (w *worker) admitResize(pod *corev1.Pod) error {
	first, err := w.judgeResize(pod)
	for _, uid := range first {
		w.p.wake(uid)
	}
	return err
}

func (w *worker) judgeResize(pod *corev1.Pod) (next []types.UID, err error) {
	granted := &w.p.granted
	granted.mu.Lock()
	defer granted.mu.Unlock()
	mine, waited := granted.deferred[w.uid]
	if mine.Pod = pod; !waited {
		mine.Since = pendingSince(pod)
	}
	reason, message, first := podplan.AdmitResizeInTurn(mine, granted.waiting(w.uid), w.p.place(""))
	if reason != "" {
		delete(granted.deferred, w.uid)
		if reason == corev1.PodReasonDeferred {
			granted.deferred[w.uid] = mine
		}
		if w.pending.Reason != reason {
			w.event(pod, nil, corev1.EventTypeWarning, "Resize"+reason, podplan.ResizeMessage(reason, pod, message))
		}
		w.pending = podplan.Ending{Reason: reason, Message: message}
		return first, nil
	}
	w.pending, w.resizeError = podplan.Ending{}, ""
	delete(granted.deferred, w.uid)
	if err := w.grantAll(pod); err != nil {
		return first, err
	}
	w.event(pod, nil, corev1.EventTypeNormal, "ResizeStarted", podplan.ResizeMessage("started", pod, ""))
	for uid := range granted.deferred {
		next = append(next, uid) // it may have become smaller
	}
	return next, nil
}

// pendingSince is since when a resize waits, also under another agent before.
func pendingSince(pod *corev1.Pod) time.Time {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodResizePending && c.Reason == corev1.PodReasonDeferred {
			return c.LastTransitionTime.Time
		}
	}
	return time.Now()
}

// waiting are the resizes that wait, but for one pod's. The lock is held.
func (a *allocations) waiting(but types.UID) []podplan.Deferred {
	var list []podplan.Deferred
	for uid, d := range a.deferred {
		if uid != but {
			list = append(list, d)
		}
	}
	return list
}

// settle ends the wait of a resize that is not asked for any more: those behind it may go on.
func (w *worker) settle() {
	w.pending = podplan.Ending{}
	granted := &w.p.granted
	granted.mu.Lock()
	_, waited := granted.deferred[w.uid]
	delete(granted.deferred, w.uid)
	granted.mu.Unlock()
	if waited {
		w.p.retryResizes()
	}
}

// retryResizes has the resizes that wait judged again.
func (p *Provider) retryResizes() {
	p.granted.mu.Lock()
	waiting := p.granted.waiting("")
	p.granted.mu.Unlock()
	for _, d := range waiting {
		p.wake(d.Pod.UID)
	}
}

func (p *Provider) wake(uid types.UID) {
	if w := p.byUID(uid); w != nil {
		w.wakeUp()
	}
}

// giveBack ends what the pod was granted: none of its processes is left. It is idempotent.
func (w *worker) giveBack() {
	w.giveBackDevices()
	granted := &w.p.granted
	granted.mu.Lock()
	_, had := granted.pods[w.uid]
	delete(granted.pods, w.uid)
	delete(granted.deferred, w.uid)
	delete(granted.leaving, w.uid)
	granted.mu.Unlock()
	if !had {
		return
	}
	if err := os.Remove(allocationPath(w.p.deps.Layout, string(w.uid))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.log.Warn("Cannot remove what a pod was granted", "err", err)
	}
	w.p.retryResizes()
}
