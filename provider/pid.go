package provider

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

// pidOf finds the process whose PID namespace the container joins; nil for a namespace of
// its own. An ephemeral container whose target does not run waits, as with a kubelet.
func (w *worker) pidOf(ctx context.Context, pod *corev1.Pod, c podplan.Container) (*launchspec.UnitProcess, error) {
	if c.Target == "" || pod.Spec.HostPID {
		return nil, nil
	}
	list := w.attempts[c.Target]
	if len(list) == 0 {
		return nil, &podplan.ConfigError{
			Reason: podplan.CreateContainerConfigError, Message: fmt.Sprintf("unable to find target container %s", c.Target),
		}
	}
	unit := list[len(list)-1].rec.Unit
	state, known, err := w.p.deps.Runtime.Get(ctx, unit)
	switch {
	case err != nil:
		return nil, fmt.Errorf("look at unit %s: %w", unit, err)
	case !known || state.MainPID == 0:
		return nil, &podplan.ConfigError{
			Reason: podplan.CreateContainerError, Message: fmt.Sprintf("target container %s is not running", c.Target),
		}
	}
	return &launchspec.UnitProcess{Unit: unit, PID: state.MainPID}, nil
}
