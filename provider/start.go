package provider

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/images"
	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/provider/podstatus"
	"github.com/vk-metal/vk-metal/systemd"
)

// refuse holds back a pod that asks for what cannot be had, and says so.
func (w *worker) refuse(pod *corev1.Pod, refused []podplan.Refusal, d podplan.Decision, waiting map[string]podplan.Waiting) podplan.Decision {
	for _, r := range refused {
		if r.Admission != "" {
			w.event(pod, nil, corev1.EventTypeWarning, r.Admission, r.Reason)
			d.Failure = &podplan.Ending{Reason: r.Admission, Message: "Pod was rejected: " + r.Reason}
			d.Ending, d.Done, d.Start = true, len(w.attempts) == 0, nil
			return d
		}
	}
	d.Start = slices.DeleteFunc(d.Start, func(st podplan.Start) bool {
		message := refusal(refused, st.Container)
		if message == "" {
			return false
		}
		w.event(pod, nil, corev1.EventTypeWarning, "UnsupportedPodSpec", message)
		waiting[st.Container] = podplan.Waiting{Reason: "UnsupportedPodSpec", Message: message}
		return true
	})
	return d
}

// refusal is what holds a container back, "" for nothing.
func refusal(refused []podplan.Refusal, container string) string {
	var parts []string
	for _, r := range refused {
		if r.Only == "" || r.Only == container {
			parts = append(parts, r.String())
		}
	}
	return strings.Join(parts, "; ")
}

// start starts what the decision says, as far as it can be started now. It says whether
// anything was started.
func (w *worker) start(ctx context.Context, pod *corev1.Pod, d podplan.Decision, waiting map[string]podplan.Waiting) bool {
	w.backoffEvents(pod, d)
	s, err := w.prepare(pod)
	if err != nil {
		w.event(pod, nil, corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: "+err.Error())
		w.wakeAfter(time.Second)
		return false
	}
	if s.ready {
		w.reached(untilPrepared)
		w.probeAll(pod, s.ips)
	}
	any := false
	for _, st := range d.Start {
		if st.Container == podplan.PauseName {
			any = s.ready && w.startPause(ctx, pod, st, s) || any
			continue
		}
		c, ok := podplan.Find(pod, st.Container)
		if !ok {
			continue
		}
		cin, wait := w.inputs(pod, c, st, s)
		if wait != nil {
			if wait.Reason != "" {
				waiting[c.Name] = *wait
			}
			continue
		}
		release, present, err := w.holdImages(ctx, pod, c, st, cin)
		if err == nil && !present {
			continue
		}
		if err == nil {
			err = w.startAttempt(ctx, pod, c, st, s, cin)
			release()
		}
		if err != nil {
			w.endStart()
		}
		switch {
		case errors.Is(err, errNoSandbox):
			w.unitChanged() // that it has died is about to be seen
			continue
		case err != nil:
			waiting[c.Name] = w.startFailed(pod, c, err)
			continue
		}
		any = true
		if c.Lifecycle != nil && c.Lifecycle.PostStart != nil {
			break // the next container waits for the hook
		}
	}
	return any
}

// backoffEvents tells of containers that are held back.
func (w *worker) backoffEvents(pod *corev1.Pod, d podplan.Decision) {
	for name, wait := range d.Waiting {
		if c, ok := podplan.Find(pod, name); ok && wait.Reason == "CrashLoopBackOff" {
			w.event(pod, &c, corev1.EventTypeWarning, "BackOff", fmt.Sprintf("Back-off restarting failed container %s in pod %s_%s(%s)",
				name, pod.Name, pod.Namespace, pod.UID))
		}
	}
}

// inputs collects what an attempt needs. wait is nil when all is there; its reason is empty
// while the default one tells enough.
func (w *worker) inputs(pod *corev1.Pod, c podplan.Container, st podplan.Start, s shared) (podplan.ContainerInputs, *podplan.Waiting) {
	none := podplan.ContainerInputs{}
	image := w.image(pod, c, st.Attempt)
	if image.err != nil && !image.done {
		waiting := imageWaiting(image.err)
		return none, &waiting
	}
	if !s.ready || !image.done {
		return none, &podplan.Waiting{}
	}
	volumes, digests, wait := w.imageVolumes(pod, c)
	if wait != nil {
		return none, wait
	}
	lent, wait := w.lentDevices(pod, c, st.Attempt)
	if wait != nil {
		return none, wait
	}
	env := w.begin(fmt.Sprintf("%s%s/%d", envOps, c.Name, st.Attempt), time.Second, func(ctx context.Context) (any, error) {
		var vars []podplan.EnvVar
		err := w.p.timed("env", func() (err error) {
			vars, err = w.resolveEnv(ctx, pod, c, s.ips, s.in.Volumes)
			return err
		})
		return vars, err
	})
	if env.err != nil && !env.done {
		w.event(pod, &c, corev1.EventTypeWarning, "Failed", "Error: "+env.err.Error())
		return none, &podplan.Waiting{Reason: podplan.CreateContainerConfigError, Message: env.err.Error()}
	}
	if !env.done {
		w.imminent = w.imminent || env.running
		return none, &podplan.Waiting{}
	}
	return podplan.ContainerInputs{
		Image: planImage(image.value.(images.Image)), Env: env.value.([]podplan.EnvVar),
		TerminationLog: w.terminationLog(c.Name, st.Attempt), ImageVolumes: volumes, VolumeImages: digests, Lent: lent,
	}, nil
}

// envOps begins the names of the operations that resolve an attempt's environment.
const envOps = "env/"

func (w *worker) terminationLog(container string, attempt int) string {
	return filepath.Join(w.p.deps.Layout.PodLib(string(w.uid)), "containers", container, fmt.Sprintf("%d.termination-log", attempt))
}

// startAttempt makes everything of one attempt and starts it. Each step may be repeated
// after a crash: the record comes first, the unit last.
func (w *worker) startAttempt(ctx context.Context, pod *corev1.Pod, c podplan.Container, st podplan.Start, s shared, cin podplan.ContainerInputs) error {
	uid := string(w.uid)
	layout := w.p.deps.Layout
	w.beginStart()
	of, err := w.pidOf(ctx, pod, c)
	if err != nil {
		return err
	}
	cin.PIDOf = of
	pipes, err := w.makeFiles(ctx, pod, c, st)
	if err != nil {
		return err
	}
	if cin.Seccomp, err = w.localSeccomp(pod, c); err == nil {
		cin.AppArmor, err = w.appArmor(pod, c)
	}
	if err == nil {
		cin.Unlabelled, err = w.checkLabels(pod, c, s.in.SELinux)
	}
	if err != nil {
		return errors.Join(err, w.p.deps.Logs.Discard(uid, c.Name, st.Attempt))
	}
	cin.Stdin, cin.Stdout, cin.Stderr, cin.Terminal = pipes.Stdin, pipes.Stdout, pipes.Stderr, pipes.Terminal
	launch, err := podplan.Build(pod, c, st, s.in, cin)
	var refusal *podplan.StartRefusal
	if err != nil && !errors.As(err, &refusal) {
		return errors.Join(err, w.p.deps.Logs.Discard(uid, c.Name, st.Attempt))
	}
	if err := checkImagePaths(launch.Spec.Mounts); err != nil {
		return errors.Join(&podplan.ConfigError{Reason: podplan.CreateContainerError, Message: err.Error()}, w.p.deps.Logs.Discard(uid, c.Name, st.Attempt))
	}
	if err := w.subPaths(ctx, c.Name, launch.Spec.Mounts); err != nil {
		return errors.Join(&podplan.ConfigError{
			Reason: podplan.CreateContainerConfigError, Message: fmt.Sprintf("failed to prepare subPath for container %q: %v", c.Name, err),
		}, w.p.deps.Logs.Discard(uid, c.Name, st.Attempt))
	}
	if err := w.relabel(ctx, launch.Relabel); err != nil {
		return errors.Join(&podplan.ConfigError{Reason: podplan.CreateContainerError, Message: err.Error()}, w.p.deps.Logs.Discard(uid, c.Name, st.Attempt))
	}
	a := newAttempt(attemptRecord{
		Container: c.Name, Number: st.Attempt, Unit: podplan.UnitName(uid, c.Name, st.Attempt), SpecHash: podplan.SpecHash(c),
		Image: c.Image, ImageID: cin.Image.Digest, CreatedAt: time.Now(), Backoff: st.Backoff, StopSignal: stopSignal(c, cin.Image),
		Resources: c.Resources.DeepCopy(), Sandbox: st.Sandbox, Round: st.Round, VolumeImages: cin.VolumeImages,
	}, false)
	if c.Lifecycle != nil && c.Lifecycle.PostStart != nil {
		a.rec.PostStart = podplan.HookRunning
	}
	if err := w.step("record", func() error { return a.rec.save(layout, uid) }); err != nil {
		return err
	}
	w.remember(a)
	w.event(pod, &c, corev1.EventTypeNormal, "Created", "Container created")
	if refusal != nil {
		return w.refuseStart(pod, c, a, refusal)
	}
	if err := w.step("launch-spec", func() error { return writeJSON(launch.Unit.LaunchSpec, launch.Spec) }); err != nil {
		return err
	}
	return w.launch(ctx, pod, c, a, launch, s)
}

// makeFiles makes the attempt's directories, its log and its termination log.
func (w *worker) makeFiles(ctx context.Context, pod *corev1.Pod, c podplan.Container, st podplan.Start) (LogPipes, error) {
	layout, uid := w.p.deps.Layout, string(w.uid)
	layer := layout.Layer(uid, c.Name, st.Attempt)
	if err := os.RemoveAll(layer); err != nil {
		return LogPipes{}, fmt.Errorf("clear writable layer: %w", err)
	}
	if err := w.countLayers(pod, filepath.Dir(layer)); err != nil {
		return LogPipes{}, fmt.Errorf("make writable layer: %w", err)
	}
	for _, dir := range []string{filepath.Join(layer, "upper"), filepath.Join(layer, "work")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return LogPipes{}, fmt.Errorf("make writable layer: %w", err)
		}
	}
	log := w.terminationLog(c.Name, st.Attempt)
	if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
		return LogPipes{}, fmt.Errorf("make termination log: %w", err)
	}
	if err := writeFile(log, nil, 0o666); err != nil {
		return LogPipes{}, fmt.Errorf("make termination log: %w", err)
	}
	var pipes LogPipes
	err := w.step("log", func() (err error) {
		pipes, err = w.p.deps.Logs.Create(ctx, LogStream{
			PodUID: uid, Namespace: pod.Namespace, PodName: pod.Name, Container: c.Name, Attempt: st.Attempt,
			Unit:  podplan.UnitName(uid, c.Name, st.Attempt),
			Path:  layout.ContainerLog(pod.Namespace, pod.Name, uid, c.Name, st.Attempt),
			Stdin: c.Stdin, StdinOnce: c.StdinOnce, TTY: c.TTY,
		})
		return err
	})
	if err != nil {
		return pipes, err
	}
	return pipes, w.p.linkLog(pod, c.Name, st.Attempt)
}

// remember adds the attempt, or replaces the prepared one of the same number, and forgets
// the ones that are too old to matter.
func (w *worker) remember(a *attempt) {
	list := w.attempts[a.rec.Container]
	if n := len(list); n > 0 && list[n-1].rec.Number == a.rec.Number {
		list = list[:n-1]
	}
	list = append(list, a)
	for len(list) > 2 && list[0].complete {
		w.dropAttempt(list[0])
		list = list[1:]
	}
	w.attempts[a.rec.Container] = list
}

// dropAttempt removes what is left of an attempt that is neither current nor previous.
func (w *worker) dropAttempt(a *attempt) {
	layout, uid, c, n := w.p.deps.Layout, string(w.uid), a.rec.Container, a.rec.Number
	pod, _ := w.current()
	logs, _ := filepath.Glob(layout.ContainerLog(pod.Namespace, pod.Name, uid, c, n) + "*")
	for _, path := range append([]string{w.p.logLink(pod, c, n)}, append(logs, layout.AttemptRun(uid, c, n), w.terminationLog(c, n))...) {
		if err := os.RemoveAll(path); err != nil {
			w.log.Warn("Cannot remove what is left of an old attempt", "container", c, "err", err)
		}
	}
	for _, kind := range []string{"image", "env", "devices", "complete", "kill", "poststart"} {
		w.forget(fmt.Sprintf("%s/%s/%d", kind, c, n))
	}
}

// launch hands the attempt to systemd.
func (w *worker) launch(ctx context.Context, pod *corev1.Pod, c podplan.Container, a *attempt, launch podplan.Launch, s shared) error {
	failure, err := w.startUnit(ctx, a, launch.Unit)
	if err != nil {
		return err
	}
	if failure != "" {
		w.event(pod, &c, corev1.EventTypeWarning, "Failed", "Error: "+failure)
		return nil
	}
	w.event(pod, &c, corev1.EventTypeNormal, "Started", "Container started")
	w.log.Info("Container started", "container", c.Name, "unit", launch.Unit.Name, "attempt", a.rec.Number)
	w.probe(pod, c, a, first(s.ips))
	w.postStart(pod, c, a, s)
	return nil
}

// startUnit starts the attempt's unit. failure says why its program never ran; an error
// that nothing is known of it: it is tried again.
func (w *worker) startUnit(ctx context.Context, a *attempt, unit systemd.Unit) (failure string, err error) {
	w.p.ownUnit(unit.Name, w)
	bounded, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	w.p.hook("start/before")
	var started systemd.Started
	w.reached(untilStarting)
	err = w.p.timed("start", func() (err error) {
		started, err = w.p.deps.Runtime.Start(bounded, unit)
		return err
	})
	w.p.hook("start/after")
	if err != nil || started.MainPID == 0 {
		w.dirty = true // of one that runs an event tells when it ends
	}
	if err != nil {
		// What came of it is in the unit and the exit record: observe finds it.
		if lookErr := w.lookAtUnit(ctx, a); lookErr != nil || a.exit == nil && !a.rec.Launched {
			return "", fmt.Errorf("start unit %s: %w", unit.Name, err)
		}
		if a.exit != nil && a.exit.StartError != nil {
			return a.exit.StartError.Message, nil
		}
		return err.Error(), nil
	}
	w.reached(untilStarted)
	a.rec.Launched, a.rec.StartedAt, a.rec.User = true, started.StartedAt, w.startedAs(a.rec)
	if err := w.step("started", func() error { return a.rec.save(w.p.deps.Layout, string(w.uid)) }); err != nil {
		w.log.Error("Cannot record a start", "container", a.rec.Container, "err", err)
	}
	return "", nil
}

// startTimeout bounds one start: the launcher takes milliseconds.
const startTimeout = 30 * time.Second

// refuseStart makes an attempt that could never be executed one that has failed to start.
func (w *worker) refuseStart(pod *corev1.Pod, c podplan.Container, a *attempt, refusal *podplan.StartRefusal) error {
	now := time.Now().UTC().Format(time.RFC3339Nano)
	exit := launchspec.Exit{
		ExitCode: 128, StartedAt: now, FinishedAt: now,
		StartError: &launchspec.StartError{Reason: "StartError", Message: refusal.Message, Code: 128},
	}
	a.rec.PostStart = podplan.HookNone
	if err := saveExit(w.p.deps.Layout, string(w.uid), a.rec, exit); err != nil {
		return err
	}
	w.event(pod, &c, corev1.EventTypeWarning, "Failed", "Error: "+refusal.Message)
	w.dirty = true
	w.wakeUp()
	return nil
}

// startFailed is the waiting state of a container that could not be made; it is tried again.
func (w *worker) startFailed(pod *corev1.Pod, c podplan.Container, err error) podplan.Waiting {
	var config *podplan.ConfigError
	reason := podplan.CreateContainerError
	if errors.As(err, &config) {
		reason = config.Reason
	}
	w.event(pod, &c, corev1.EventTypeWarning, "Failed", "Error: "+err.Error())
	w.wakeAfter(w.events.delay(c.Name))
	return podplan.Waiting{Reason: reason, Message: err.Error()}
}

// probeAll sees to it that every running attempt is probed, after an agent restart too.
func (w *worker) probeAll(pod *corev1.Pod, ips []string) {
	for name, list := range w.attempts {
		a := list[len(list)-1]
		if !a.adopted || a.exit != nil || !a.rec.Launched || a.rec.Kill != nil || !a.readyUntil.IsZero() {
			continue
		}
		if c, ok := podplan.Find(pod, name); ok {
			a.heldReady, a.heldStart = w.knownAs(pod, a)
			a.readyUntil = time.Now().Add(holdTime(c))
			w.probe(pod, c, a, first(ips))
			w.wakeUp()
		}
	}
}

// knownAs is what the API says of an attempt. What it says of the one before is no news of this one.
func (w *worker) knownAs(pod *corev1.Pod, a *attempt) (ready, started bool) {
	shown := w.shownAs(pod)
	if shown == nil {
		return false, false
	}
	status, _ := statusOf(shown, a.rec.Container)
	if status.ContainerID != podstatus.ContainerID(string(w.uid), a.rec.Container, a.rec.Number) {
		return false, false
	}
	return status.Ready, status.Started != nil && *status.Started
}

// holdTime is how long probes may take to find out for themselves.
func holdTime(c podplan.Container) time.Duration {
	hold := time.Second
	for _, p := range []*corev1.Probe{c.ReadinessProbe, c.StartupProbe} {
		if p != nil {
			hold = max(hold, time.Duration(p.PeriodSeconds*max(p.FailureThreshold, p.SuccessThreshold)+p.TimeoutSeconds)*time.Second)
		}
	}
	return hold
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}
