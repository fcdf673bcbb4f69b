package podplan

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/internal/seccomp"
	"github.com/vk-metal/vk-metal/systemd"
)

// PauseName names the process that keeps the PID namespace of a pod with
// shareProcessNamespace. Its attempts are observed, started and ended like a container's;
// no container can be called so.
const PauseName = ".pause"

// pauseOOMScore is what a kubelet gives a sandbox (pkg/kubelet/qos, PodInfraOOMAdj).
const pauseOOMScore = -998

var pauseContainer = Container{Container: corev1.Container{Name: PauseName}}

// SharesPID says whether the pod's containers live in one PID namespace of their own.
func SharesPID(pod *corev1.Pod) bool {
	share := pod.Spec.ShareProcessNamespace
	return share != nil && *share && !pod.Spec.HostPID
}

// BuildPause computes the unit and the launch spec of a pod's pause process.
func BuildPause(pod *corev1.Pod, start Start, in PodInputs) Launch {
	uid, adjust := string(pod.UID), pauseOOMScore
	spec := launchspec.Spec{
		Version: launchspec.Version, Pause: true,
		Pod: pod.Namespace + "/" + pod.Name, PodUID: uid, Container: PauseName, Attempt: start.Attempt,
		Hostname: in.Hostname, Namespaces: namespaces(pod, in, ContainerInputs{}), OOMScoreAdj: &adjust,
		ErrorRecord: in.Layout.ErrorRecord(uid, PauseName, start.Attempt),
		ExitRecord:  in.Layout.ExitRecord(uid, PauseName, start.Attempt),
	}
	// Where the host's architecture has no profile it runs without: it has no rights anyway.
	if program, err := compiled(seccomp.Default(), nil, in.Seccomp); err == nil {
		spec.SeccompBPF, spec.SeccompFlags = program, seccomp.Default().Flags()
	}
	shares := Shares(0)
	return Launch{Spec: spec, Unit: systemd.Unit{
		Name: UnitName(uid, PauseName, start.Attempt), Slice: SliceName(uid, QOS(pod)),
		Description: pod.Namespace + "/" + pod.Name + " (PID namespace)",
		Identity: systemd.Identity{
			PodUID: uid, PodNamespace: pod.Namespace, PodName: pod.Name, Container: PauseName, Attempt: start.Attempt,
		},
		Resources:  systemd.Resources{CPUShares: &shares},
		LaunchSpec: in.Layout.LaunchSpec(uid, PauseName, start.Attempt), ExitRecord: spec.ExitRecord,
		OOMScoreAdjust: &adjust, StopTimeout: time.Second,
	}}
}

// sandbox is the number of the pause process that runs, -1 while none does.
func (o Observed) sandbox() int {
	if last, ok := o.latest(PauseName); ok && last.Phase != Ended {
		return last.Number
	}
	return -1
}

// SandboxUp says whether containers of the pod may run as far as its pause process goes.
func (o Observed) SandboxUp(pod *corev1.Pod) bool {
	last, ok := o.latest(PauseName)
	return !SharesPID(pod) || ok && last.Phase == Running
}

// Stale says whether an attempt ran before a restart of all containers, or in a sandbox that is
// no more: before a reboot, or in a PID namespace whose first process has died. Its end says
// nothing of what is to come.
func (o Observed) Stale(pod *corev1.Pod, a Attempt) bool {
	return a.Imported || a.Round < o.RestartRound(pod) || SharesPID(pod) && a.Sandbox != o.sandbox()
}

// pause keeps the pause process running and says whether containers may start. When it
// dies the kernel kills all in its namespace: once they are gone the pod begins anew, as
// under a kubelet whose sandbox has changed.
func (d *decider) pause() (up bool) {
	if !SharesPID(d.pod) {
		return true
	}
	last, ok := d.obs.latest(PauseName)
	switch {
	case ok && last.Phase == Running:
		return true
	case ok && last.Phase == Prepared:
		d.start(pauseContainer, last.Number, last.Backoff)
		return false
	case d.killAll(), d.rebootEndsPod():
		return !d.obs.anyRunning()
	case !ok:
		d.start(pauseContainer, 0, 0)
		return false
	}
	until := heldUntil(last)
	if d.obs.Now.Before(until) {
		d.wake(until)
		return false
	}
	d.start(pauseContainer, last.Number+1, nextBackoff(last))
	return false
}

// killAll makes sure of the end of every container.
func (d *decider) killAll() bool {
	running := false
	for _, c := range Containers(d.pod) {
		running = d.kill(c, minimalGrace, "Stopping container "+c.Name, true) || running
	}
	return running
}
