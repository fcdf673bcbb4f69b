package probes

import (
	"context"

	corev1 "k8s.io/api/core/v1"
)

// Kind of a probe.
type Kind string

// The probe kinds of corev1.Container.
const (
	Startup   Kind = "Startup"
	Liveness  Kind = "Liveness"
	Readiness Kind = "Readiness"
)

// Target is one container attempt to probe.
type Target struct {
	PodUID, Namespace, PodName string
	PodIP                      string
	Container                  corev1.Container
	Attempt                    int
	// HostNetwork pods are probed on the node's address (PodIP holds it).
	StartedAtUnixNano int64
	// WasStarted and WasReady are what the API status says of this attempt. They are the
	// initial results of a container that was already running when the Prober was made,
	// so that an agent restart takes no pod out of its Services; else they are not read.
	WasStarted, WasReady bool
}

// Execer runs an exec probe inside the container and returns its exit code and output
// (at most 10 KiB).
type Execer interface {
	ExecProbe(ctx context.Context, target Target, command []string) (exitCode int, output []byte, err error)
}

// Results is what the pod worker reads. Initial values are the kubelet's: readiness
// false and startup false until the first result; liveness true.
type Results struct {
	// Ready and Started hold what the kubelet would report: without a readiness probe a
	// container is ready once it is started, without a startup probe it is started.
	Ready, Started bool
	// LivenessFailed or StartupFailed asks for the container to be killed and restarted.
	LivenessFailed, StartupFailed bool
	// Message is the last failed probe's output.
	Message string
	// GracePeriodSeconds is the failed liveness or startup probe's own
	// terminationGracePeriodSeconds; nil leaves it to the pod.
	GracePeriodSeconds *int64
}

// Manager is what the provider needs of probes; *Prober implements it.
type Manager interface {
	// Sync starts the attempt's probe workers (idempotent) and stops those of older attempts.
	Sync(target Target)
	// Stop ends the probes of a container or (container == "") of the whole pod.
	Stop(podUID, container string)
	// StopLivenessAndStartup keeps readiness running while a pod terminates and ends the others.
	StopLivenessAndStartup(podUID string)
	// Results of the attempt; ok is false when it is not probed.
	Results(podUID, container string, attempt int) (Results, bool)
	// OnChange is called after a result that matters changed; never with locks held.
	OnChange(func(podUID string))
	// OnEvent gets Unhealthy and ProbeWarning events for the pod.
	OnEvent(func(target Target, eventType, reason, message string))
}
