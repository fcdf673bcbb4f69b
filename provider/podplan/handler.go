package podplan

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// Handlers of RuntimeClasses. Pods without one have DefaultHandler.
const (
	DefaultHandler = "systemd"
	// StrictHandler runs containers with less than a container has elsewhere.
	StrictHandler = "strict"
)

// Handlers are those that this node has, the default one by both of its names.
func Handlers() []string { return []string{"", DefaultHandler, StrictHandler} }

// KnownHandler says whether the node has the handler.
func KnownHandler(name string) bool { return slices.Contains(Handlers(), name) }

// strictCapabilities are what the strict handler leaves of a container's default ones; a
// container may add others by name.
var strictCapabilities = []string{"CAP_NET_BIND_SERVICE"}

// checkStrict refuses what contradicts the strict handler, rather than choosing one of two.
func checkStrict(pod *corev1.Pod, c Container, in PodInputs) error {
	if in.Handler != StrictHandler {
		return nil
	}
	var problem string
	escalation, profile := containerContext(c).AllowPrivilegeEscalation, seccompProfile(pod, c)
	switch {
	case privileged(c):
		problem = "privileged"
	case escalation != nil && *escalation:
		problem = "allowPrivilegeEscalation: true"
	case profile != nil && profile.Type == corev1.SeccompProfileTypeUnconfined:
		problem = "seccompProfile: Unconfined"
	default:
		return nil
	}
	return &ConfigError{CreateContainerError, "securityContext." + problem + " is not possible with the runtime handler " + StrictHandler}
}

// tighten takes from the container what the strict handler does not leave it.
func tighten(spec *launchspec.Spec, c Container, in PodInputs) {
	if in.Handler != StrictHandler {
		return
	}
	spec.NoNewPrivileges = true
	spec.Capabilities = capabilitiesFrom(strictCapabilities, c.SecurityContext)
}
