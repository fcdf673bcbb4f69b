package podplan

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Start is one attempt to start now.
type Start struct {
	Container string        `json:"container"`
	Attempt   int           `json:"attempt"`
	Backoff   time.Duration `json:"backoff,omitempty"` // what the attempt after this one waits
	// Sandbox is the number of the pause process that it runs under.
	Sandbox int `json:"sandbox,omitempty"`
	// Round is the restart of all containers that it is part of, 0 before the first.
	Round int `json:"round,omitempty"`
}

// Kill is one running attempt to end.
type Kill struct {
	Container string        `json:"container"`
	Attempt   int           `json:"attempt"`
	Grace     time.Duration `json:"grace"`
	Message   string        `json:"message"`
	// Restart says that the container is started again afterwards.
	Restart bool `json:"restart,omitempty"`
	// Abrupt says that no preStop hook is run.
	Abrupt bool `json:"abrupt,omitempty"`
	// After are the containers that have to end before the stop signal is sent, as long as the
	// grace period lasts. The preStop hook does not wait for them.
	After []string `json:"after,omitempty"`
}

// Waiting is a container's waiting state.
type Waiting struct {
	Reason  string `json:"reason"`
	Message string `json:"message,omitempty"`
}

// Decision is what is to be done with a pod now.
type Decision struct {
	Start []Start `json:"start,omitempty"`
	Kill  []Kill  `json:"kill,omitempty"`
	// Resize has the running attempts whose limits are to be changed.
	Resize []Resize `json:"resize,omitempty"`
	// Waiting has the containers that wait, and why.
	Waiting map[string]Waiting `json:"waiting,omitempty"`
	// Wake is when time alone changes this decision; zero for never.
	Wake time.Time `json:"wake,omitzero"`
	// Hold keeps the kills of a deleted pod back; nil for none.
	Hold *Hold `json:"hold,omitempty"`
	// Ending says that nothing is started any more: the pod is deleted, has failed or is done.
	Ending bool `json:"ending,omitempty"`
	// Done says that, besides, no process is left: the pod's phase is final.
	Done bool `json:"done,omitempty"`
	// Trigger is the exit for which all containers are being ended, to be started again; nil
	// for none, and once they have ended.
	Trigger *Trigger `json:"trigger,omitempty"`
	// Failure is why the pod failed as a whole.
	Failure *Ending `json:"failure,omitempty"`
	// Initialized says that all init containers have done their part.
	Initialized bool `json:"initialized,omitempty"`
}

// decider collects a Decision for one pod.
type decider struct {
	pod *corev1.Pod
	obs Observed
	out Decision
	// rebooted says that nothing is started any more, see rebootEndsPod.
	rebooted bool
}

// Decide computes the next actions by the kubelet's rules. It never starts a container
// of which an attempt may be alive.
func Decide(pod *corev1.Pod, obs Observed) Decision {
	d := &decider{pod: pod, obs: obs, out: Decision{Waiting: map[string]Waiting{}}}
	if failure, ends := d.ends(); ends {
		d.out.Failure = failure
		if failure == nil {
			d.hold()
		}
		d.end()
		return d.out
	}
	if up := d.pause(); !up {
		return d.out
	}
	d.ephemeral()
	if waits := d.restartAll(); waits {
		return d.out
	}
	if failed := d.init(); failed {
		d.out.Start = nil
		d.end()
		return d.out
	}
	if !d.out.Initialized {
		d.waitForInit()
		return d.out
	}
	if done := d.main(); done {
		d.out.Start = nil
		d.end()
	}
	return d.out
}

// ends says whether the pod as a whole has come to its end, and why if it failed.
func (d *decider) ends() (*Ending, bool) {
	switch {
	case d.obs.Evict != nil:
		return d.obs.Evict, true
	case d.deadlinePassed():
		return &Ending{Reason: "DeadlineExceeded", Message: "Pod was active on the node longer than the specified deadline"}, true
	case d.obs.Gone, d.pod.DeletionTimestamp != nil:
		return nil, true
	}
	phase := d.pod.Status.Phase
	return nil, phase == corev1.PodSucceeded || phase == corev1.PodFailed
}

func (d *decider) deadlinePassed() bool {
	if d.pod.Spec.ActiveDeadlineSeconds == nil || d.pod.Status.StartTime == nil || terminal(d.pod) {
		return false
	}
	deadline := d.pod.Status.StartTime.Add(time.Duration(*d.pod.Spec.ActiveDeadlineSeconds) * time.Second)
	if d.obs.Now.Before(deadline) {
		d.wake(deadline)
		return false
	}
	return true
}

func terminal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// end kills what runs, within one grace period: all at once, but that sidecars get their stop
// signals in reverse order, each after the main containers and the sidecars behind it have ended
// (pkg/kubelet/kuberuntime, terminationOrdering).
func (d *decider) end() {
	d.out.Ending = true
	d.out.Done = !d.obs.anyRunning()
	if d.out.Hold != nil {
		return
	}
	all := Containers(d.pod)
	var before []string
	for _, c := range all {
		if c.Role != RoleSidecar && d.kill(c, d.grace(), "Stopping container "+c.Name, false) && c.Role == RoleMain {
			before = append(before, c.Name)
		}
	}
	for _, c := range slices.Backward(all) {
		if c.Role == RoleSidecar && d.killAfter(c, before) {
			before = append(before, c.Name)
		}
	}
	if len(d.out.Kill) == 0 {
		d.kill(pauseContainer, minimalGrace, "", false) // the last: with it go all in its namespace
	}
}

// killAfter is kill for a sidecar whose turn comes after others.
func (d *decider) killAfter(c Container, before []string) bool {
	from := len(d.out.Kill)
	running := d.kill(c, d.grace(), "Stopping container "+c.Name, false)
	for i := range d.out.Kill[from:] {
		d.out.Kill[from+i].After = slices.Clone(before)
	}
	return running
}

// grace is how long the pod's containers have from the beginning of their end; a hold has
// taken its part before.
func (d *decider) grace() time.Duration {
	grace := PodGrace(d.pod)
	if most := d.obs.EvictGrace; d.obs.Evict != nil && most != nil {
		grace = min(grace, *most)
	}
	return max(grace-d.obs.held(), minimalGrace)
}

// minimalGrace is left to containers even where 0 was asked for, as a kubelet does.
const minimalGrace = time.Second

// PodGrace is the time that the pod's containers have to stop, counted from when this
// node begins to stop them: clocks of API server and node are not compared.
func PodGrace(pod *corev1.Pod) time.Duration {
	grace := 30 * time.Second
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		grace = time.Duration(*s) * time.Second
	}
	if s := pod.DeletionGracePeriodSeconds; s != nil {
		grace = time.Duration(*s) * time.Second
	}
	return max(grace, minimalGrace)
}

// kill adds a kill for every running attempt of the container and says whether there is one.
func (d *decider) kill(c Container, grace time.Duration, message string, restart bool) bool {
	running := false
	for _, a := range d.obs.Attempts[c.Name] {
		if a.Phase == Running {
			running = true
			d.out.Kill = append(d.out.Kill, Kill{Container: c.Name, Attempt: a.Number, Grace: grace, Message: message, Restart: restart})
		}
	}
	return running
}

// main decides on the main containers and says whether all have ended for good.
func (d *decider) main() bool {
	done := true
	for _, c := range Containers(d.pod) {
		if c.Role != RoleMain {
			continue
		}
		ended, started := d.container(c)
		done = done && ended
		if !started {
			break // a postStart hook runs: the next container waits for it
		}
	}
	return done
}

// container decides on one container whose turn has come: ended says that it has ended
// for good, started that the containers after it may start.
func (d *decider) container(c Container) (ended, started bool) {
	last, ok := d.obs.latest(c.Name)
	before := len(d.out.Start)
	defer func() {
		if len(d.out.Start) > before && c.Lifecycle != nil && c.Lifecycle.PostStart != nil {
			started = false // not before its hook is over
		}
	}()
	switch {
	case d.rebooted:
		return true, true
	case !ok:
		d.start(c, 0, 0)
	case last.Phase == Prepared:
		d.start(c, last.Number, last.Backoff)
	case last.Phase == Running:
		d.running(c, last)
		return false, last.PostStart != HookRunning
	case d.obs.outdated(d.pod, c, last):
		d.startAnew(c, last)
	default:
		return d.endedAttempt(c, last), true
	}
	return false, true
}

// running kills an attempt that has failed its probes or hook, or is outdated.
func (d *decider) running(c Container, a Attempt) {
	var message string
	grace, restart := d.grace(), restartsAfterProbe(d.pod, c)
	resize, replace := resizeOf(c, a)
	switch {
	case a.Killing:
		return // the kill goes on by itself
	case a.SpecHash != "" && a.SpecHash != SpecHash(c):
		message, restart = fmt.Sprintf("Container %s definition changed", c.Name), true
	case a.LivenessFailed:
		message, grace = fmt.Sprintf("Container %s failed liveness probe", c.Name), probeGrace(c.LivenessProbe, grace)
	case a.StartupFailed:
		message, grace = fmt.Sprintf("Container %s failed startup probe", c.Name), probeGrace(c.StartupProbe, grace)
	case a.PostStart == HookFailed:
		message = "FailedPostStartHook"
	case replace:
		d.out.Kill = append(d.out.Kill, Kill{
			Container: c.Name, Attempt: a.Number, Grace: grace, Restart: true,
			Message: fmt.Sprintf("Container %s resize requires restart", c.Name),
		})
		return
	case resize:
		d.out.Resize = append(d.out.Resize, Resize{Container: c.Name, Attempt: a.Number, Resources: c.Resources})
		return
	default:
		return
	}
	switch {
	case a.PostStart == HookFailed:
		restart = false // its exit code says
	case restart:
		message += ", will be restarted"
	}
	d.out.Kill = append(d.out.Kill, Kill{Container: c.Name, Attempt: a.Number, Grace: grace, Message: message, Restart: restart})
}

func probeGrace(p *corev1.Probe, grace time.Duration) time.Duration {
	if p == nil || p.TerminationGracePeriodSeconds == nil {
		return grace
	}
	return time.Duration(*p.TerminationGracePeriodSeconds) * time.Second
}

// endedAttempt restarts a container, or holds it back, or says that it has ended for good.
func (d *decider) endedAttempt(c Container, last Attempt) bool {
	_, replace := resizeOf(c, last)
	changed := last.SpecHash != "" && last.SpecHash != SpecHash(c) || replace && last.Killing
	if !Restarts(d.pod, c, last.ExitCode) {
		if !last.Restart || d.obs.Stale(d.pod, last) {
			return true
		}
		// The API server would not let the container leave an end that it was told of.
		d.out.Waiting[c.Name] = Waiting{Reason: "ContainerCreating"}
	}
	if changed || last.Imported {
		d.start(c, last.Number+1, 0)
		return false
	}
	until := heldUntil(last)
	if d.obs.Now.Before(until) {
		d.holdBack(c, last, until)
		return false
	}
	d.start(c, last.Number+1, nextBackoff(last))
	return false
}

func (d *decider) holdBack(c Container, last Attempt, until time.Time) {
	d.wake(until)
	if shown := last.heldFrom().Add(startErrorShown); last.Reason == "StartError" && d.obs.Now.Before(shown) {
		d.wake(shown)
		d.out.Waiting[c.Name] = Waiting{Reason: "RunContainerError", Message: last.Message}
		return
	}
	d.out.Waiting[c.Name] = Waiting{
		Reason: "CrashLoopBackOff",
		Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)",
			last.Backoff, c.Name, d.pod.Name, d.pod.Namespace, d.pod.UID),
	}
}

func (d *decider) start(c Container, attempt int, backoff time.Duration) {
	start := Start{Container: c.Name, Attempt: attempt, Backoff: backoff}
	if c.Role != RoleEphemeral && c.Name != PauseName {
		start.Round = d.obs.RestartRound(d.pod)
	}
	if SharesPID(d.pod) && c.Name != PauseName {
		start.Sandbox = d.obs.sandbox()
	}
	d.out.Start = append(d.out.Start, start)
}

func (d *decider) wake(at time.Time) {
	if d.out.Wake.IsZero() || at.Before(d.out.Wake) {
		d.out.Wake = at
	}
}

// ephemeral containers start whatever the others do, and never again.
func (d *decider) ephemeral() {
	for _, c := range Containers(d.pod) {
		if c.Role == RoleEphemeral {
			d.container(c)
		}
	}
}
