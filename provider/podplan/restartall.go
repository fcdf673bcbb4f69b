package podplan

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// RestartingAll is the reason of a container that waits while all containers of its pod
// restart (the kubelet's RestartingAllContainers).
const RestartingAll = "RestartingAllContainers"

const restartingAllMessage = "The container was stopped because all containers of the pod restart"

// RestartsAll says whether an exit of any of the pod's containers may restart all of them
// (KEP-5532).
func RestartsAll(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.InitContainers, hasRestartAll) || slices.ContainsFunc(pod.Spec.Containers, hasRestartAll)
}

func hasRestartAll(c corev1.Container) bool {
	return slices.ContainsFunc(c.RestartPolicyRules, func(r corev1.ContainerRestartRule) bool {
		return r.Action == corev1.ContainerRestartRuleActionRestartAllContainers
	})
}

// Trigger is an exit that restarts all containers of its pod.
type Trigger struct {
	Container string `json:"container"`
	ExitCode  int    `json:"exitCode"`
}

func (t Trigger) String() string {
	return fmt.Sprintf("Container %s exited with code %d: all containers of the pod restart", t.Container, t.ExitCode)
}

// round is the highest number of restarts of all containers that an attempt was started in.
func (o Observed) round(pod *corev1.Pod) int {
	round := 0
	for _, c := range Containers(pod) {
		if last, ok := o.latest(c.Name); ok {
			round = max(round, last.Round)
		}
	}
	return round
}

// triggers are the containers whose ends ask for a restart of all containers that has not
// begun yet. An end counts once: the attempts that follow it are of a higher round.
func (o Observed) triggers(pod *corev1.Pod) []Container {
	if !RestartsAll(pod) {
		return nil
	}
	round := o.round(pod)
	var out []Container
	for _, c := range Containers(pod) {
		last, ok := o.latest(c.Name)
		if ok && last.Phase == Ended && last.Round == round && action(c, last.ExitCode) == corev1.ContainerRestartRuleActionRestartAllContainers {
			out = append(out, c)
		}
	}
	return out
}

// RestartRound is the restart of all containers that the pod is in, 0 before the first:
// attempts of another one are to be ended, and say nothing of what is to come.
func (o Observed) RestartRound(pod *corev1.Pod) int {
	if !RestartsAll(pod) {
		return 0
	}
	if len(o.triggers(pod)) > 0 {
		return o.round(pod) + 1
	}
	return o.round(pod)
}

// outdated says whether the attempt belongs to the time before a restart of all
// containers. Ephemeral containers are none of its business.
func (o Observed) outdated(pod *corev1.Pod, c Container, a Attempt) bool {
	return c.Role != RoleEphemeral && c.Name != PauseName && a.Round < o.RestartRound(pod)
}

// restartAll ends what ran before a restart of all containers, and says whether the pod
// waits for that, or for the back-off of the container whose exit asked for it. As the KEP has it
// there is no order, no preStop hook and no grace period; the sandbox, the volumes and
// ephemeral containers stay.
func (d *decider) restartAll() (waits bool) {
	if d.obs.RestartRound(d.pod) == 0 {
		return false
	}
	running := false
	for _, c := range Containers(d.pod) {
		last, ok := d.obs.latest(c.Name)
		if !ok || !d.obs.outdated(d.pod, c, last) {
			continue
		}
		if last.Phase == Ended {
			d.out.Waiting[c.Name] = Waiting{Reason: RestartingAll, Message: restartingAllMessage}
		}
		running = d.killAbruptly(c) || running
	}
	held := d.holdRestart(running)
	return running || held
}

// holdRestart holds a restart of all containers back as its triggers would be held back if
// they were restarted alone.
func (d *decider) holdRestart(running bool) (held bool) {
	for _, c := range d.obs.triggers(d.pod) {
		last, _ := d.obs.latest(c.Name)
		if running && d.out.Trigger == nil {
			d.out.Trigger = &Trigger{Container: c.Name, ExitCode: last.ExitCode}
		}
		if until := heldUntil(last); !last.Imported && d.obs.Now.Before(until) {
			held = true
			d.holdBack(c, last, until)
		}
	}
	return held
}

func (d *decider) killAbruptly(c Container) bool {
	before := len(d.out.Kill)
	running := d.kill(c, 0, fmt.Sprintf("Stopping container %s: all containers of the pod restart", c.Name), true)
	for i := range d.out.Kill[before:] {
		d.out.Kill[before+i].Abrupt = true
	}
	return running
}

// startAnew starts a container in the present round. One whose exit brought it about has a
// longer back-off from then on, the others keep theirs.
func (d *decider) startAnew(c Container, last Attempt) {
	backoff := last.Backoff
	switch {
	case action(c, last.ExitCode) == corev1.ContainerRestartRuleActionRestartAllContainers:
		backoff = nextBackoff(last)
	case expired(last):
		backoff = 0
	}
	d.start(c, last.Number+1, backoff)
}
