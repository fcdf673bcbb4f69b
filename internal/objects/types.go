package objects

import (
	"context"

	corev1 "k8s.io/api/core/v1"
)

// Source reads the ConfigMaps and Secrets that local pods refer to, and asks for
// service-account tokens. A node identity may not list them: each referenced object
// has a watch of its own, by name, for as long as a registered pod refers to it.
type Source interface {
	// Register and Unregister say which pod is on this node; Register is idempotent and
	// takes up a pod's new references (ephemeral containers, imagePullSecrets).
	Register(pod *corev1.Pod)
	Unregister(podUID string)
	// ConfigMap and Secret return the newest known object, waiting for the watch's first
	// answer. A missing object is an apierrors.IsNotFound error.
	ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
	// Token returns a service-account token bound to the pod, from cache while it is
	// younger than 80 % of its life (and 24 h).
	Token(ctx context.Context, pod *corev1.Pod, audience string, expirationSeconds int64) (string, error)
	// OnChange is called with the UID of every registered pod that refers to a changed object.
	OnChange(func(podUID string))
}
