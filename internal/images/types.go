package images

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Image is a pulled image, ready to run.
type Image struct {
	// Ref is the reference asked for; Digest is repository@sha256:… (status.imageID);
	// ID is the config digest.
	Ref, Digest, ID string
	// Layers are the unpacked layers' directories, topmost first. Empty for a host image.
	Layers []string
	Config Config
	// Host says that the reference named a host image (see docs/host-images.md).
	Host bool
	// HostPath is the root of a host image.
	HostPath string
	Size     int64
}

// Config is the part of the OCI image configuration that a container takes over.
type Config struct {
	Entrypoint, Cmd, Env []string
	User, WorkingDir     string
	StopSignal           string
	Volumes              []string
	ExposedPorts         []string
}

// PullEvent reports progress in the kubelet's terms.
type PullEvent struct {
	Type    string // corev1.EventTypeNormal or Warning
	Reason  string // Pulling, Pulled, Failed, BackOff, ErrImageNeverPull, InspectFailed
	Message string
}

// Error is why an image cannot be had; Reason goes to the container's waiting state.
type Error struct {
	// Reason: ErrImagePull, ImagePullBackOff, ErrImageNeverPull, InvalidImageName,
	// RegistryUnavailable, ImageInspectError.
	Reason string
	// Image is the reference asked for.
	Image string
	Err   error
	// RetryAt is when the back-off ends; zero when nothing but a change of the pod helps.
	RetryAt time.Time
}

// Error is the message that a kubelet puts beside the reason.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// PullRequest asks for an image for one container.
type PullRequest struct {
	Ref     string
	Policy  corev1.PullPolicy
	Secrets []corev1.Secret // dockerconfigjson and dockercfg, tried in order
	// Pod is who asks: it waits for its own failures only, and its service account is shown to
	// plugins that want it. Nil is the administrator.
	Pod   *corev1.Pod
	Event func(PullEvent) // may be nil
}

// Store is what the provider needs of images. *Manager implements it.
type Store interface {
	// Ensure makes the image present by the policy and returns it. Concurrent pulls of
	// one reference are one pull. Errors are *Error, back-off included (10 s doubling to 5 min,
	// per pod and image reference).
	Ensure(ctx context.Context, req PullRequest) (Image, error)
	// Get returns a present image by digest or ID; used after an agent restart.
	Get(ctx context.Context, digest string) (Image, bool, error)
	// HoldStart keeps images from being removed until release: from a Get until the unit that
	// names the image has been started. It is not to be held over an Ensure.
	HoldStart() (release func(), err error)
	// List returns all present images for node status.
	List(ctx context.Context) ([]corev1.ContainerImage, error)
}
