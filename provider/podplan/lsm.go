package podplan

import (
	"cmp"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// AppArmor is the AppArmor profile that a container asks for.
type AppArmor struct {
	// Type is Unconfined, RuntimeDefault or Localhost.
	Type corev1.AppArmorProfileType
	// Name of a Localhost profile, as the kernel knows it.
	Name string
	// Explicit says that the pod names it. A default that nobody asked for may be left out
	// where the host cannot load it.
	Explicit bool
}

// annotationAppArmor is what a pod said before there was a field; the API server keeps
// both the same.
const annotationAppArmor = corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix

// AppArmorOf is the container's own profile, or the pod's, or the default one. Privileged
// containers have no default, as with containerd.
func AppArmorOf(pod *corev1.Pod, c Container) (AppArmor, error) {
	profile := cmp.Or(containerContext(c).AppArmorProfile, podContext(pod).AppArmorProfile)
	if profile == nil {
		profile = annotatedAppArmor(pod.Annotations[annotationAppArmor+c.Name])
	}
	out := AppArmor{Type: corev1.AppArmorProfileTypeRuntimeDefault, Explicit: profile != nil}
	if profile != nil {
		out.Type = profile.Type
	}
	switch {
	case out.Type == corev1.AppArmorProfileTypeRuntimeDefault && privileged(c):
		out.Type = corev1.AppArmorProfileTypeUnconfined
	case out.Type == corev1.AppArmorProfileTypeLocalhost:
		if profile.LocalhostProfile == nil || *profile.LocalhostProfile == "" {
			return AppArmor{}, &ConfigError{CreateContainerConfigError, "localhostProfile must be set if appArmorProfile type is Localhost."}
		}
		out.Name = *profile.LocalhostProfile
	}
	return out, nil
}

func annotatedAppArmor(value string) *corev1.AppArmorProfile {
	switch value {
	case "":
		return nil
	case corev1.DeprecatedAppArmorBetaProfileNameUnconfined:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}
	case corev1.DeprecatedAppArmorBetaProfileRuntimeDefault:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}
	}
	name := strings.TrimPrefix(value, corev1.DeprecatedAppArmorBetaProfileNamePrefix)
	return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: &name}
}

// hostSecurity refuses what asks for security modules. AppArmor profiles on a host without
// AppArmor fail the pod, as a kubelet does (pkg/security/apparmor). SELinux options on a host
// without SELinux mean nothing, as for a container runtime.
func hostSecurity(pod *corev1.Pod, policy Policy) []Refusal {
	var refusals []Refusal
	add := func(field, only string, profile *corev1.AppArmorProfile) {
		if !policy.AppArmor && profile != nil && profile.Type != corev1.AppArmorProfileTypeUnconfined {
			r := Refusal{Field: field + ".appArmorProfile", Reason: "AppArmor is not enabled on the host", Only: only}
			if only == "" {
				r.Admission, r.Reason = "AppArmor", "Cannot enforce AppArmor: "+r.Reason
			}
			refusals = append(refusals, r)
		}
	}
	add("spec.securityContext", "", podContext(pod).AppArmorProfile)
	for _, c := range Containers(pod) {
		add(c.Field+".securityContext", only(c), containerContext(c).AppArmorProfile)
	}
	return refusals
}
