package provider

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/probes"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

// attempt is what a worker knows of one attempt beside its record.
type attempt struct {
	rec attemptRecord
	// adopted attempts were found at the start of this agent.
	adopted bool
	exit    *launchspec.Exit
	// ended is closed when the process is dead and the exit record read; complete says
	// that the log is on disk as well, as far as one waits for that.
	ended    chan struct{}
	complete bool
	heldFrom time.Time // when it ended; valid with exit
	// completed is closed once readers outside the loop may know of complete.
	completed    chan struct{}
	completeOnce sync.Once
	message      string
	// readyUntil keeps an adopted attempt's readiness until its probes have spoken.
	readyUntil time.Time
	heldReady  bool
	heldStart  bool
}

func newAttempt(rec attemptRecord, adopted bool) *attempt {
	a := &attempt{
		rec: rec, adopted: adopted, ended: make(chan struct{}), completed: make(chan struct{}),
		complete: rec.Completed, message: rec.Message,
	}
	if adopted && rec.PostStart == podplan.HookRunning {
		a.rec.PostStart = podplan.HookDone // as a kubelet: a hook is not repeated
	}
	return a
}

// observe looks at units, records and probes.
func (w *worker) observe(ctx context.Context, pod *corev1.Pod, gone bool) (podplan.Observed, error) {
	ask := w.dirty
	w.collectHooks(pod)
	obs := podplan.Observed{Now: time.Now(), Gone: gone, Attempts: map[string][]podplan.Attempt{}}
	for name, list := range w.attempts {
		for _, a := range list {
			if err := w.look(ctx, pod, a, ask); err != nil {
				return obs, err
			}
			obs.Attempts[name] = append(obs.Attempts[name], w.view(pod, a))
		}
	}
	w.dirty = false
	obs.Offer = w.offer(pod, obs.Now)
	if w.evicted != nil {
		obs.Evict, obs.EvictGrace = &w.evicted.Ending, &w.evicted.Grace
	}
	w.show()
	return obs, nil
}

// look finds out whether an attempt has ended.
func (w *worker) look(ctx context.Context, pod *corev1.Pod, a *attempt, ask bool) error {
	if a.exit == nil {
		if !ask {
			return nil
		}
		if err := w.lookAtUnit(ctx, a); err != nil {
			return err
		}
	}
	if a.exit != nil && !a.complete {
		return w.complete(pod, a)
	}
	return nil
}

func (w *worker) lookAtUnit(ctx context.Context, a *attempt) error {
	state, known, err := w.p.deps.Runtime.Get(ctx, a.rec.Unit)
	if err != nil {
		return fmt.Errorf("look at unit %s: %w", a.rec.Unit, err)
	}
	if known && state.Running() {
		return w.noteRunning(a, state.StartedAt)
	}
	exit, ok, err := loadExit(w.p.deps.Layout, string(w.uid), a.rec)
	if err != nil {
		return err
	}
	if !ok {
		if !a.rec.Launched && !known {
			return nil // never started: the crash came before
		}
		exit = launchspec.Exit{
			ExitCode: 137, FinishedAt: time.Now().UTC().Format(time.RFC3339Nano),
			StartedAt: a.rec.StartedAt.UTC().Format(time.RFC3339Nano),
		}
		a.rec.Reason, a.rec.Message = "ContainerStatusUnknown", "The container's unit ended without an exit record"
		if err := saveExit(w.p.deps.Layout, string(w.uid), a.rec, exit); err != nil {
			return err
		}
		if err := a.rec.save(w.p.deps.Layout, string(w.uid)); err != nil {
			return err
		}
	}
	a.exit, a.heldFrom = &exit, heldFrom(exit, time.Now())
	close(a.ended)
	return nil
}

// heldFrom is when the process ended, on the monotonic clock: a back-off must not be longer
// because somebody sets the clock back.
func heldFrom(exit launchspec.Exit, seen time.Time) time.Time {
	ended, err := time.Parse(time.RFC3339Nano, exit.FinishedAt)
	if err != nil {
		return seen
	}
	return seen.Add(-max(seen.Sub(ended), 0))
}

// noteRunning takes up an attempt whose start was not recorded: the agent died in between.
func (w *worker) noteRunning(a *attempt, at time.Time) error {
	if a.rec.Launched || at.IsZero() {
		return nil
	}
	a.rec.Launched, a.rec.StartedAt, a.rec.User = true, at, w.startedAs(a.rec)
	return a.rec.save(w.p.deps.Layout, string(w.uid))
}

// logWait bounds how long the end of a container is held back for its log.
const logWait = 3 * time.Second

// complete waits beside the loop for the log of an ended attempt, then cleans up after it.
func (w *worker) complete(pod *corev1.Pod, a *attempt) error {
	c, _ := podplan.Find(pod, a.rec.Container)
	uid, name, number := string(w.uid), a.rec.Container, a.rec.Number
	exit := *a.exit
	o := w.begin(fmt.Sprintf("complete/%s/%d", name, number), time.Second, func(ctx context.Context) (any, error) {
		w.p.deps.Probes.Stop(uid, name)
		bounded, cancel := context.WithTimeout(ctx, logWait)
		defer cancel()
		if err := w.p.deps.Logs.WaitClosed(bounded, uid, name, number); err != nil {
			w.log.Warn("Log of an ended container is not complete", "container", name, "err", err)
		}
		message := w.terminationMessage(pod, c, number, exit)
		return message, w.cleanAttempt(ctx, a.rec.Unit, name, number)
	})
	if !o.done {
		return nil
	}
	message := a.rec.Message
	if message == "" {
		message = o.value.(string)
	}
	a.rec.Completed, a.rec.Message = true, message
	if err := w.step("completed", func() error { return a.rec.save(w.p.deps.Layout, uid) }); err != nil {
		return err
	}
	a.complete, a.message = true, message
	return nil
}

// cleanAttempt forgets the unit and removes the writable layer; the records and the log stay.
func (w *worker) cleanAttempt(ctx context.Context, unit, container string, number int) error {
	w.p.hook("clean/before")
	defer w.p.hook("clean/after")
	if err := w.p.deps.Runtime.Remove(ctx, unit); err != nil {
		return fmt.Errorf("remove unit %s: %w", unit, err)
	}
	layer := w.p.deps.Layout.Layer(string(w.uid), container, number)
	if err := os.RemoveAll(layer); err != nil {
		return fmt.Errorf("remove writable layer: %w", err)
	}
	return nil
}

// view is the attempt as podplan sees it.
func (w *worker) view(pod *corev1.Pod, a *attempt) podplan.Attempt {
	v := podplan.Attempt{
		Number: a.rec.Number, Unit: a.rec.Unit, SpecHash: a.rec.SpecHash, Imported: a.rec.Imported,
		CreatedAt: a.rec.CreatedAt, Backoff: a.rec.Backoff, StartedAt: a.rec.StartedAt,
		Image: a.rec.Image, ImageID: a.rec.ImageID, User: a.rec.User, Resources: a.rec.Resources, PostStart: a.rec.PostStart, Killing: a.rec.Kill != nil,
		Restart: a.rec.Kill != nil && a.rec.Kill.Restart,
		Phase:   podplan.Running, Sandbox: a.rec.Sandbox, Round: a.rec.Round,
	}
	switch {
	case a.exit != nil && (a.complete || a.rec.Container == podplan.PauseName): // that one has no log
		v.Phase = podplan.Ended
	case a.exit == nil && !a.rec.Launched:
		v.Phase = podplan.Prepared
	}
	if a.exit != nil {
		viewExit(&v, a)
	}
	if v.Phase == podplan.Running {
		w.viewProbes(pod, a, &v)
	}
	return v
}

func viewExit(v *podplan.Attempt, a *attempt) {
	v.ExitCode, v.Signal, v.OOMKilled = a.exit.ExitCode, a.exit.Signal, a.exit.OOMKilled
	v.Reason, v.Message = a.rec.Reason, a.message
	if k := a.rec.Kill; v.Reason == "" && !v.OOMKilled && k != nil && k.Abrupt {
		v.Reason = podplan.RestartingAll
	}
	if t, err := time.Parse(time.RFC3339Nano, a.exit.FinishedAt); err == nil {
		v.FinishedAt, v.HeldFrom = t, a.heldFrom
	}
	if t, err := time.Parse(time.RFC3339Nano, a.exit.StartedAt); err == nil && v.StartedAt.IsZero() {
		v.StartedAt = t
	}
	if e := a.exit.StartError; e != nil {
		v.Reason, v.Message, v.ExitCode = "StartError", e.Message, e.Code
	}
}

// viewProbes fills in readiness. Without probes a container has started, and is ready,
// once its postStart hook is over.
func (w *worker) viewProbes(pod *corev1.Pod, a *attempt, v *podplan.Attempt) {
	over := v.PostStart != podplan.HookRunning
	v.Started, v.Ready = over && a.exit == nil, over && a.exit == nil
	r, probed := w.p.deps.Probes.Results(string(w.uid), a.rec.Container, a.rec.Number)
	if probed {
		v.Started, v.Ready = v.Started && r.Started, v.Ready && r.Ready && r.Started
		v.LivenessFailed, v.StartupFailed = r.LivenessFailed, r.StartupFailed
	}
	if a.adopted && a.exit == nil {
		w.holdResults(a, v)
	}
	if pod.DeletionTimestamp != nil && a.exit != nil {
		v.Ready = false
	}
}

// holdResults keeps what the API says of a container that ran through an agent restart,
// until its probes have had the time to say otherwise: endpoints must not flap.
func (w *worker) holdResults(a *attempt, v *podplan.Attempt) {
	if !time.Now().Before(a.readyUntil) {
		return
	}
	v.Ready = v.Ready || a.heldReady
	v.Started = v.Started || a.heldStart
	w.wakeAfter(time.Until(a.readyUntil))
}

// probe starts the attempt's probes; it is idempotent.
func (w *worker) probe(pod *corev1.Pod, c podplan.Container, a *attempt, podIP string) {
	w.p.deps.Probes.Sync(probes.Target{
		PodUID: string(w.uid), Namespace: pod.Namespace, PodName: pod.Name, PodIP: podIP,
		Container: c.Container, Attempt: a.rec.Number, StartedAtUnixNano: a.rec.StartedAt.UnixNano(),
		WasStarted: a.heldStart, WasReady: a.heldReady,
	})
}
