package provider

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

// errNoSandbox says that the pause process of the pod does not run any more.
var errNoSandbox = errors.New("the pod's PID namespace has ended")

// pidOf finds the process whose PID namespace the container joins; nil for a namespace of
// its own. An ephemeral container whose target does not run waits, as with a kubelet.
func (w *worker) pidOf(ctx context.Context, pod *corev1.Pod, c podplan.Container) (*launchspec.UnitProcess, error) {
	name := c.Target
	if podplan.SharesPID(pod) {
		name = podplan.PauseName
	}
	if name == "" || pod.Spec.HostPID {
		return nil, nil
	}
	list := w.attempts[name]
	if len(list) == 0 {
		return nil, &podplan.ConfigError{
			Reason: podplan.CreateContainerConfigError, Message: fmt.Sprintf("unable to find target container %s", name),
		}
	}
	unit := list[len(list)-1].rec.Unit
	state, known, err := w.p.deps.Runtime.Get(ctx, unit)
	switch {
	case err != nil:
		return nil, fmt.Errorf("look at unit %s: %w", unit, err)
	case known && state.MainPID != 0:
		return &launchspec.UnitProcess{Unit: unit, PID: state.MainPID}, nil
	case name == podplan.PauseName:
		return nil, errNoSandbox
	}
	return nil, &podplan.ConfigError{
		Reason: podplan.CreateContainerError, Message: fmt.Sprintf("target container %s is not running", name),
	}
}

// startPause starts the pod's pause process. Each step may be repeated after a crash: the
// record comes first, the unit last.
func (w *worker) startPause(ctx context.Context, pod *corev1.Pod, st podplan.Start, s shared) bool {
	if st.Attempt > 0 {
		w.event(pod, nil, corev1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
	}
	err := w.tryPause(ctx, pod, st, s)
	if err != nil {
		w.event(pod, nil, corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: "+err.Error())
		w.wakeAfter(w.events.delay(podplan.PauseName))
	}
	return err == nil
}

func (w *worker) tryPause(ctx context.Context, pod *corev1.Pod, st podplan.Start, s shared) error {
	launch := podplan.BuildPause(pod, st, s.in)
	a := newAttempt(attemptRecord{
		Container: podplan.PauseName, Number: st.Attempt, Unit: launch.Unit.Name, CreatedAt: time.Now(), Backoff: st.Backoff,
		StopSignal: "SIGKILL", // it ignores all others
	}, false)
	if err := w.step("record", func() error { return a.rec.save(w.p.deps.Layout, string(w.uid)) }); err != nil {
		return err
	}
	w.remember(a)
	if err := w.step("launch-spec", func() error { return writeJSON(launch.Unit.LaunchSpec, launch.Spec) }); err != nil {
		return err
	}
	failure, err := w.startUnit(ctx, a, launch.Unit)
	if failure != "" {
		return errors.New(failure)
	}
	return err
}
