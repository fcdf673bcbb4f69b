package provider

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/systemd"
)

// resync is how often a worker looks again although nothing has woken it.
const resync = time.Minute

// worker runs one pod, from first sight until nothing is left of it. Its loop is level
// triggered: whatever wakes it, it looks at everything of the pod. One loop per UID means
// that no two decisions about a pod are ever made at once.
type worker struct {
	p   *Provider
	uid types.UID
	log *slog.Logger

	counted bool // by countStart
	begun   startWatch

	ctx   context.Context
	group sync.WaitGroup // operations beside the loop
	wake  chan struct{}

	mu     sync.Mutex
	pod    *corev1.Pod // newest known object
	gone   bool        // the object does not exist any more
	closed bool
	ops    ops
	next   time.Time // earliest wake-up asked for during this sync
	status corev1.PodStatus
	hasRun bool // status is valid
	// changed says that an object which the pod refers to is not what it was.
	changed bool
	visible map[string][]shown
	mirror  *corev1.Pod // shows a static pod in the API; nil for none
	// eviction is asked for by others, and kept on disk once the loop has seen it.
	eviction *evictRecord
	dead     chan struct{} // closed when no process of the pod is left
	told     chan struct{} // closed when, besides, the API has the final status
	freed    chan struct{} // closed when the pod holds nothing of the node any more

	// Only the loop touches these.
	attempts  map[string][]*attempt
	loaded    bool
	dirty     bool        // units have to be asked
	imminent  bool        // a start waits for nothing but its environment
	saved     *corev1.Pod // as it is on disk
	started   time.Time
	released  bool
	furnished bool         // all that the pod's containers share has been there
	toldIPs   []netip.Addr // whose readiness was told
	etc       etcFiles
	etcIPs    string // the addresses that etc was written for
	// labelled are the labels that this agent gave to volumes, by their paths.
	labelled map[string]string
	events   eventLimiter
	progress progress

	grant       podplan.Allocation // nil before admission
	rejected    *podplan.Refusal
	pending     podplan.Ending // why a resize waits
	slice       systemd.Slice  // as it was last set
	resizeError string

	hold      *holdRecord // nil before a hold
	withdrawn time.Time   // since when Services offer the pod to nobody
	evicted   *evictRecord

	volumesDue time.Time // when it is news that volumes are not there

	unitsDirty chan struct{}
	looking    pulse
}

func newWorker(p *Provider, pod *corev1.Pod) *worker {
	return &worker{
		p: p, uid: pod.UID, pod: pod, ops: ops{}, wake: make(chan struct{}, 1), unitsDirty: make(chan struct{}, 1),
		log:  p.log.With("pod", pod.Namespace+"/"+pod.Name, "uid", pod.UID),
		dead: make(chan struct{}), told: make(chan struct{}), freed: make(chan struct{}),
		attempts: map[string][]*attempt{}, dirty: true, started: time.Now(), events: eventLimiter{},
	}
}

// wakeUp makes the loop look again; any number of calls is one look.
func (w *worker) wakeUp() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// unitChanged wakes the loop and makes it ask systemd.
func (w *worker) unitChanged() {
	select {
	case w.unitsDirty <- struct{}{}:
	default:
	}
	w.wakeUp()
}

// wakeAt asks for a look at a time. The lock is held.
func (w *worker) wakeAt(at time.Time) {
	if w.next.IsZero() || at.Before(w.next) {
		w.next = at
	}
}

func (w *worker) wakeAfter(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wakeAt(time.Now().Add(d))
}

// set replaces the pod's object. One that is known already is no reason to look: most come
// more than once, as answer, by the watch and through virtual-kubelet.
func (w *worker) set(pod *corev1.Pod) {
	w.mu.Lock()
	known := pod.ResourceVersion != "" && pod.ResourceVersion == w.pod.ResourceVersion
	if !w.gone && newer(pod, w.pod) {
		w.pod = pod
	}
	w.mu.Unlock()
	if !known {
		w.wakeUp()
	}
}

// setGone says that the object does not exist any more; last is what it was, if known.
func (w *worker) setGone(last *corev1.Pod) {
	w.mu.Lock()
	if last != nil && last.UID == w.uid {
		w.pod = last
	}
	w.gone = true
	w.mu.Unlock()
	w.wakeUp()
}

func (w *worker) current() (pod *corev1.Pod, gone bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pod, w.gone
}

// run loops until the pod has left no trace or ctx ends.
func (w *worker) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	w.ctx = ctx
	defer func() {
		cancel()
		w.endStart()
		w.untrack()
		w.mu.Lock()
		w.closed = true
		w.mu.Unlock()
		w.group.Wait()
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
			w.dirty = true
		}
		select {
		case <-w.unitsDirty:
			w.dirty = true
		default:
		}
		w.looking.beat()
		finished := w.sync(ctx)
		w.looking.rest()
		if finished {
			return
		}
		timer.Reset(w.untilNext())
	}
}

func (w *worker) untilNext() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := w.next
	w.next = time.Time{}
	if next.IsZero() {
		return resync
	}
	return min(max(time.Until(next), time.Millisecond), resync)
}

// sync looks at the pod once: observe, decide, act, report. It says whether nothing of
// the pod is left.
func (w *worker) sync(ctx context.Context) (finished bool) {
	pod, gone := w.current()
	if err := w.load(pod, gone); err != nil {
		w.log.Error("Cannot read the state of a pod", "err", err)
		w.wakeAfter(time.Second)
		return false
	}
	w.measureStart(pod, time.Now())
	pod, rejected, err := w.allocate(pod, gone)
	if errors.Is(err, errNoRoomYet) {
		w.wakeAfter(time.Second)
		return false
	}
	if err != nil {
		w.log.Error("Cannot admit a pod", "err", err)
		w.wakeAfter(time.Second)
		return false
	}
	obs, err := w.observe(ctx, pod, gone)
	if err != nil {
		w.log.Error("Cannot observe a pod", "err", err)
		w.wakeAfter(time.Second)
		return false
	}
	decision := podplan.Decide(pod, obs)
	refused := podplan.Refusals(pod, w.p.policy())
	if rejected != nil {
		refused = append([]podplan.Refusal{*rejected}, refused...)
	}
	waiting := map[string]podplan.Waiting{}
	w.imminent = false
	if len(refused) > 0 && !decision.Ending {
		decision = w.refuse(pod, refused, decision, waiting)
	}
	if err := w.holdBack(pod, decision, obs.Now); err != nil {
		w.log.Error("Cannot hold back the end of a pod", "err", err)
		w.wakeAfter(time.Second)
		return false
	}
	w.kill(pod, decision)
	w.resize(pod, decision)
	if !decision.Ending {
		if w.start(ctx, pod, decision, waiting) {
			if obs, err = w.observe(ctx, pod, gone); err == nil {
				decision = w.redecide(pod, obs, decision)
			}
		}
	}
	if !decision.Wake.IsZero() {
		w.mu.Lock()
		w.wakeAt(decision.Wake)
		w.mu.Unlock()
	}
	if decision.Done && !w.unclaimed(pod) {
		decision.Done = false
	}
	if decision.Done {
		w.giveBack()
	}
	reported := w.report(pod, gone, obs, decision, waiting, refused)
	w.showEnd(decision, reported)
	w.p.lookedAt(w.uid)
	return w.end(pod, gone, decision, reported)
}

// redecide takes up what has just been started, for the report; further actions follow in
// the next look, which is made at once.
func (w *worker) redecide(pod *corev1.Pod, obs podplan.Observed, before podplan.Decision) podplan.Decision {
	now := podplan.Decide(pod, obs)
	if len(now.Start) > 0 || len(now.Kill) > 0 || now.Ending != before.Ending {
		w.wakeUp()
	}
	return now
}

// load reads the pod's records once per worker, and keeps the pod's snapshot up to date.
func (w *worker) load(pod *corev1.Pod, gone bool) error {
	layout := w.p.deps.Layout
	if !w.loaded {
		if err := adopt(layout, pod, time.Now()); err != nil {
			return err
		}
		w.p.hook("adopt/after")
		records, err := loadRecords(layout, string(w.uid))
		if err != nil {
			return err
		}
		for name, list := range records {
			for _, rec := range list {
				if rec.Kill != nil {
					rec.Kill.notLater(time.Now())
				}
				w.attempts[name] = append(w.attempts[name], newAttempt(rec, true))
			}
		}
		if w.grant, err = loadAllocation(layout, string(w.uid)); err != nil {
			return err
		}
		if err := w.loadHold(); err != nil {
			return err
		}
		if err := w.loadEviction(); err != nil {
			return err
		}
		if len(w.attempts) == 0 {
			w.beginProgress()
		}
		w.loaded = true
	}
	if err := w.takeEviction(); err != nil {
		return err
	}
	w.mu.Lock()
	changed := w.changed
	w.changed = false
	w.mu.Unlock()
	if w.saved == nil || !sameWish(w.saved, pod) {
		if err := savePod(layout, pod); err != nil {
			return err
		}
		w.saved, changed = pod, true
		w.track(pod)
		if !w.released && !gone { // a node may not read what no pod of its own refers to
			w.p.deps.Objects.Register(pod)
		}
		w.p.markQOS()
	}
	if changed {
		w.metadataChanged()
	} else {
		w.retryUpdate()
	}
	return nil
}

// sameWish says whether two versions of a pod ask for the same: all but the status.
func sameWish(a, b *corev1.Pod) bool {
	return a.Generation == b.Generation && a.DeletionTimestamp.Equal(b.DeletionTimestamp) &&
		maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Annotations, b.Annotations) &&
		equality.Semantic.DeepEqual(a.Spec, b.Spec)
}
