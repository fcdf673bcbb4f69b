package podplan

import (
	"errors"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/systemd"
)

// Plan is everything that would be done with a pod now; `vk-metal plan` prints it.
type Plan struct {
	Pod      string             `json:"pod"`
	UID      string             `json:"uid"`
	QOSClass corev1.PodQOSClass `json:"qosClass"`
	Refused  []Refusal          `json:"refused,omitempty"`
	Slice    systemd.Slice      `json:"slice"`
	Decision Decision           `json:"decision"`
	// Launches are the attempts to start now, in order.
	Launches []Launch `json:"launches,omitempty"`
	// Then are the first attempts that follow once their turn comes, such as main
	// containers after init containers. Only For fills it in.
	Then []Launch `json:"then,omitempty"`
	// Waiting containers that could not be built, by name.
	Waiting map[string]Waiting `json:"waiting,omitempty"`
}

// For computes the plan of a pod from what is known of it. resolve gives a container's
// inputs; ok is false while they are not there yet.
func For(pod *corev1.Pod, obs Observed, policy Policy, in PodInputs, resolve func(Container) (ContainerInputs, bool)) Plan {
	plan := Plan{
		Pod: pod.Namespace + "/" + pod.Name, UID: string(pod.UID), QOSClass: QOS(pod),
		Refused: Refusals(pod, policy), Slice: PodSlice(pod, in.PodPidsLimit), Decision: Decide(pod, obs),
		Waiting: map[string]Waiting{},
	}
	if slices.ContainsFunc(plan.Refused, func(r Refusal) bool { return r.Only == "" }) {
		return plan
	}
	started := map[string]bool{}
	for _, start := range plan.Decision.Start {
		if launch, ok := plan.build(pod, start, in, resolve); ok {
			plan.Launches = append(plan.Launches, launch)
		}
		started[start.Container] = true
	}
	if plan.Decision.Ending {
		return plan
	}
	for _, c := range Containers(pod) {
		if _, attempted := obs.latest(c.Name); attempted || started[c.Name] {
			continue
		}
		if launch, ok := plan.build(pod, Start{Container: c.Name}, in, resolve); ok {
			plan.Then = append(plan.Then, launch)
		}
	}
	return plan
}

func (p *Plan) build(pod *corev1.Pod, start Start, in PodInputs, resolve func(Container) (ContainerInputs, bool)) (Launch, bool) {
	if start.Container == PauseName {
		return BuildPause(pod, start, in), true
	}
	c, _ := Find(pod, start.Container)
	cin, ok := resolve(c)
	if !ok {
		p.Waiting[c.Name] = Waiting{Reason: "ContainerCreating"}
		return Launch{}, false
	}
	launch, err := Build(pod, c, start, in, cin)
	if err != nil {
		p.Waiting[c.Name] = waitingFor(err)
		return Launch{}, false
	}
	return launch, true
}

func waitingFor(err error) Waiting {
	var config *ConfigError
	if errors.As(err, &config) {
		return Waiting{Reason: config.Reason, Message: config.Message}
	}
	return Waiting{Reason: "RunContainerError", Message: err.Error()}
}

// leastToStop is how long a process has after the stop signal, whatever the grace period
// was and however much of it the preStop hook took (the kubelet's minimumGracePeriodInSeconds).
const leastToStop = 2 * time.Second

// KillTimes splits a kill's grace: the preStop hook may use all of it, hookEnded is zero
// where none ran.
func KillTimes(begun time.Time, grace time.Duration, hookEnded time.Time) (killAt time.Time) {
	signalled := begun
	if hookEnded.After(begun) {
		signalled = hookEnded
	}
	killAt = begun.Add(grace)
	if least := signalled.Add(leastToStop); killAt.Before(least) {
		return least
	}
	return killAt
}
