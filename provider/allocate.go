package provider

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

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
	// deferred are the pods whose resize waits for others to go.
	deferred map[types.UID]bool
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
	if gone && w.grant != nil {
		w.p.granted.leave(w.uid)
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
		w.pending = podplan.Ending{}
	}
	return podplan.Granted(pod, w.grant), nil, nil
}

// leave gives the pod's place away before its processes have ended.
func (a *allocations) leave(uid types.UID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, has := a.pods[uid]; has {
		a.leaving[uid] = true
	}
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

// admitResize grants a running pod other resources, or keeps why not.
func (w *worker) admitResize(pod *corev1.Pod) error {
	granted := &w.p.granted
	granted.mu.Lock()
	defer granted.mu.Unlock()
	reason, message := podplan.AdmitResize(pod, w.p.place(w.uid))
	if reason != "" {
		granted.deferred[w.uid] = reason == corev1.PodReasonDeferred
		if w.pending.Reason != reason {
			w.event(pod, nil, corev1.EventTypeWarning, "Resize"+reason, message)
		}
		w.pending = podplan.Ending{Reason: reason, Message: message}
		return nil
	}
	w.pending, w.resizeError = podplan.Ending{}, ""
	delete(granted.deferred, w.uid)
	if err := w.grantAll(pod); err != nil {
		return err
	}
	w.event(pod, nil, corev1.EventTypeNormal, "ResizeStarted", fmt.Sprintf("Pod resize started: %s", describeGrant(w.grant)))
	return nil
}

func describeGrant(a podplan.Allocation) string {
	text := ""
	for name, r := range a {
		text += fmt.Sprintf("%s cpu %s/%s memory %s/%s; ", name, r.Requests.Cpu(), r.Limits.Cpu(), r.Requests.Memory(), r.Limits.Memory())
	}
	return text
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
	waiting := make([]types.UID, 0, len(granted.deferred))
	for uid, is := range granted.deferred {
		if is {
			waiting = append(waiting, uid)
		}
	}
	granted.mu.Unlock()
	if !had {
		return
	}
	if err := os.Remove(allocationPath(w.p.deps.Layout, string(w.uid))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.log.Warn("Cannot remove what a pod was granted", "err", err)
	}
	for _, uid := range waiting {
		if other := w.p.byUID(uid); other != nil {
			other.wakeUp()
		}
	}
}
