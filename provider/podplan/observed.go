package podplan

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Phase of one attempt.
type Phase string

// An attempt is prepared on disk, then runs, then has ended.
const (
	Prepared Phase = "Prepared" // recorded, its unit was never started
	Running  Phase = "Running"  // its unit exists, or its log is not complete yet
	Ended    Phase = "Ended"
)

// HookState of a postStart hook.
type HookState string

// A container without the hook has HookNone; HookDone and HookFailed are final.
const (
	HookNone    HookState = ""
	HookRunning HookState = "Running"
	HookDone    HookState = "Done"
	HookFailed  HookState = "Failed"
)

// Attempt is what is known of one attempt of a container.
type Attempt struct {
	Number int    `json:"number"`
	Phase  Phase  `json:"phase"`
	Unit   string `json:"unit,omitempty"`
	// SpecHash of the container as this attempt was started.
	SpecHash string `json:"specHash,omitempty"`
	// Imported attempts are known from the API only: the node was rebooted since.
	Imported bool `json:"imported,omitempty"`
	// Sandbox is the number of the pod's pause process that this attempt was started under.
	Sandbox int `json:"sandbox,omitempty"`
	// Round is the restart of all containers that this attempt was part of, 0 before the first.
	Round int `json:"round,omitempty"`

	// CreatedAt is when the attempt was decided on; Backoff is the delay that the next
	// attempt will be held back for, 0 for none.
	CreatedAt  time.Time     `json:"createdAt"`
	Backoff    time.Duration `json:"backoff,omitempty"`
	StartedAt  time.Time     `json:"startedAt,omitzero"`
	FinishedAt time.Time     `json:"finishedAt,omitzero"`
	// HeldFrom is FinishedAt on a clock that nobody sets; zero where that is not known.
	HeldFrom time.Time `json:"heldFrom,omitzero"`

	ExitCode  int  `json:"exitCode,omitempty"`
	Signal    int  `json:"signal,omitempty"`
	OOMKilled bool `json:"oomKilled,omitempty"`
	// Reason overrides Completed, Error and OOMKilled (StartError, ContainerStatusUnknown).
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`

	// Image is the reference that was asked for, ImageID what it resolved to.
	Image   string `json:"image,omitempty"`
	ImageID string `json:"imageID,omitempty"`

	// User is who the process was started as; nil where that is not known.
	User *corev1.LinuxContainerUser `json:"user,omitempty"`
	// Resources are what the process runs with; nil where that is not known.
	Resources *corev1.ResourceRequirements `json:"resources,omitempty"`

	PostStart HookState `json:"postStart,omitempty"`
	// Killing says that a kill of this attempt has begun; it is never taken back.
	Killing bool `json:"killing,omitempty"`
	// Restart says that it was killed to be started again, whatever its exit code is: a kubelet
	// starts anew in the same breath what it kills for a probe, an image or a resize.
	Restart bool `json:"restart,omitempty"`

	// Ready and Started are the probes' results, or what holds without probes.
	Ready          bool `json:"ready,omitempty"`
	Started        bool `json:"started,omitempty"`
	LivenessFailed bool `json:"livenessFailed,omitempty"`
	StartupFailed  bool `json:"startupFailed,omitempty"`
}

// Failed says whether an ended attempt counts as a failure.
func (a Attempt) Failed() bool { return a.ExitCode != 0 }

// Observed is the state of one pod on this node at one moment.
type Observed struct {
	Now time.Time `json:"now"`
	// Attempts by container name, in ascending order of their numbers.
	Attempts map[string][]Attempt `json:"attempts,omitempty"`
	// Gone says that the API object does not exist any more (or has another UID).
	Gone bool `json:"gone,omitempty"`
	// Evict, when set, ends the pod with this reason and message.
	Evict *Ending `json:"evict,omitempty"`
	// EvictGrace bounds the grace period of an evicted pod; nil leaves it its own.
	EvictGrace *time.Duration `json:"evictGrace,omitempty"`
	// Offer is how Services offer the pod to clients; nil where that is not asked.
	Offer *Offer `json:"offer,omitempty"`
}

// Ending is why a pod fails as a whole.
type Ending struct {
	Reason  string `json:"reason"`
	Message string `json:"message,omitempty"`
	// Disrupts says that the node ends a pod that did nothing wrong: Jobs do not count it.
	Disrupts bool `json:"disrupts,omitempty"`
}

// latest returns a container's newest attempt.
func (o Observed) latest(container string) (Attempt, bool) {
	attempts := o.Attempts[container]
	if len(attempts) == 0 {
		return Attempt{}, false
	}
	return attempts[len(attempts)-1], true
}

// anyRunning says whether a process of any attempt may be alive.
func (o Observed) anyRunning() bool {
	for _, attempts := range o.Attempts {
		for _, a := range attempts {
			if a.Phase == Running {
				return true
			}
		}
	}
	return false
}

// Role of a container in its pod.
type Role string

// The roles in the order of their start.
const (
	RoleInit      Role = "Init"
	RoleSidecar   Role = "Sidecar" // a restartable init container
	RoleMain      Role = "Main"
	RoleEphemeral Role = "Ephemeral"
)

// Container is a container of a pod with its role and its path in the spec.
type Container struct {
	corev1.Container
	Role Role
	// Field is its path, such as spec.initContainers{name} in events.
	Field string
	// Target is an ephemeral container's targetContainerName.
	Target string
}

// Containers lists the pod's containers: init containers and sidecars as declared, then
// the main ones, then ephemeral ones.
func Containers(pod *corev1.Pod) []Container {
	var all []Container
	for _, c := range pod.Spec.InitContainers {
		role := RoleInit
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			role = RoleSidecar
		}
		all = append(all, Container{Container: c, Role: role, Field: "spec.initContainers{" + c.Name + "}"})
	}
	for _, c := range pod.Spec.Containers {
		all = append(all, Container{Container: c, Role: RoleMain, Field: "spec.containers{" + c.Name + "}"})
	}
	for _, e := range pod.Spec.EphemeralContainers {
		all = append(all, Container{
			Container: corev1.Container(e.EphemeralContainerCommon), Role: RoleEphemeral,
			Field: "spec.ephemeralContainers{" + e.Name + "}", Target: e.TargetContainerName,
		})
	}
	return all
}

// Find returns a container of the pod by name.
func Find(pod *corev1.Pod, name string) (Container, bool) {
	for _, c := range Containers(pod) {
		if c.Name == name {
			return c, true
		}
	}
	return Container{}, false
}
