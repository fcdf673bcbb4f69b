package provider

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-metal/vk-metal/internal/endpoints"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

// HoldOptions say how a deleted pod's stop signals are held back until Services' clients
// are not sent to it any more.
type HoldOptions struct {
	// Endpoints is what the cluster says of the pods; nil holds nothing back.
	Endpoints endpoints.Source
	// Settle is what other nodes are given to act on what they see.
	Settle time.Duration
	// Percent of the grace period is what a hold may take.
	Percent int
	// Forbidden is told, once, when the cluster does not let this node see the slices of a pod
	// that ends: nothing is held back then. It does not block; may be nil.
	Forbidden func()
}

// holdFile has the pod's holdRecord: an agent that comes later goes on with the hold.
const holdFile = "hold.json"

type holdRecord struct {
	Begun time.Time `json:"begun"`
	Over  time.Time `json:"over,omitzero"`
}

func (w *worker) loadHold() error {
	rec := &holdRecord{}
	err := readJSON(w.holdPath(), rec)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read how far the pod's end was held back: %w", err)
	}
	if now := time.Now(); rec.Begun.After(now) { // the clock was set back
		rec.Begun = now
	}
	w.hold = rec
	return nil
}

func (w *worker) holdPath() string {
	return filepath.Join(w.p.deps.Layout.PodRun(string(w.uid)), holdFile)
}

// offer is what Services tell their clients of the pod; nil where nobody asks.
func (w *worker) offer(pod *corev1.Pod, now time.Time) *podplan.Offer {
	o := w.p.deps.Hold
	if o.Endpoints == nil || pod.DeletionTimestamp == nil {
		return nil
	}
	list, state := o.Endpoints.Of(w.uid)
	if state == endpoints.Forbidden {
		if o.Forbidden != nil {
			w.p.holdForbidden.Do(o.Forbidden)
		}
		return nil
	}
	offer := &podplan.Offer{Settle: o.Settle, Percent: o.Percent, Unknown: state == endpoints.Unknown}
	for _, e := range list {
		offer.Endpoints = append(offer.Endpoints, podplan.Endpoint(e))
	}
	switch {
	case offer.Unknown, !podplan.Withdrawn(offer.Endpoints):
		w.withdrawn = time.Time{}
	case w.withdrawn.IsZero():
		w.withdrawn = now
	}
	offer.Withdrawn = w.withdrawn
	if w.hold != nil {
		offer.Begun, offer.Over = w.hold.Begun, w.hold.Over
	}
	return offer
}

// holdBack records where the hold stands, before anything is killed, and tells of it.
func (w *worker) holdBack(pod *corev1.Pod, d podplan.Decision, now time.Time) error {
	switch {
	case d.Hold != nil && w.hold == nil:
		rec := &holdRecord{Begun: d.Hold.Begun}
		if err := w.step("hold", func() error { return writeJSON(w.holdPath(), rec) }); err != nil {
			return err
		}
		w.hold = rec
		w.p.deps.Probes.StopLivenessAndStartup(string(w.uid))
		w.event(pod, nil, corev1.EventTypeNormal, "StopHeld", holdMessage(d.Hold))
	case d.Hold == nil && d.Ending && w.hold != nil && w.hold.Over.IsZero():
		rec := &holdRecord{Begun: w.hold.Begun, Over: now}
		if err := writeJSON(w.holdPath(), rec); err != nil {
			return err
		}
		w.hold = rec
		w.holdOver(pod, now)
	}
	return nil
}

func holdMessage(h *podplan.Hold) string {
	where := "endpoint slices are not known yet"
	switch {
	case len(h.Offering) > 0:
		where = "clients are sent here by " + strings.Join(h.Offering, ", ")
	case !h.Settled.IsZero():
		where = "other nodes may not know yet that clients are not sent here any more"
	}
	return fmt.Sprintf("Containers are not stopped yet, for %s at most: %s", h.Until.Sub(h.Begun), where)
}

// holdOver tells how the hold ended.
func (w *worker) holdOver(pod *corev1.Pod, now time.Time) {
	took := now.Sub(w.hold.Begun).Round(time.Millisecond)
	if pod.DeletionTimestamp == nil || !w.withdrawn.IsZero() {
		w.log.Info("Clients of the pod have been sent elsewhere", "after", took)
		return
	}
	w.event(pod, nil, corev1.EventTypeWarning, "StopHeldTooLong", fmt.Sprintf(
		"Containers are stopped although clients may still be sent here: no EndpointSlice changed that for %s", took))
}

// endpointsChanged wakes the worker of a pod that is ending.
func (p *Provider) endpointsChanged(uid types.UID) {
	w := p.byUID(uid)
	if w == nil {
		return
	}
	if pod, _ := w.current(); pod.DeletionTimestamp != nil {
		w.wakeUp()
	}
}

// track keeps the source of endpoints informed of this pod.
func (w *worker) track(pod *corev1.Pod) {
	if source := w.p.deps.Hold.Endpoints; source != nil {
		source.Track(pod)
	}
}

func (w *worker) untrack() {
	if source := w.p.deps.Hold.Endpoints; source != nil {
		source.Forget(w.uid)
	}
}
