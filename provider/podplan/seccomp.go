package podplan

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/internal/seccomp"
)

// LocalSeccomp is the file, below the node's directory of profiles, of a container that
// has a Localhost profile; "" for all others. A name that leads out of the directory is a
// *ConfigError.
func LocalSeccomp(pod *corev1.Pod, c Container) (string, error) {
	profile := seccompProfile(pod, c)
	if privileged(c) || profile == nil || profile.Type != corev1.SeccompProfileTypeLocalhost {
		return "", nil
	}
	if profile.LocalhostProfile == nil || *profile.LocalhostProfile == "" {
		return "", &ConfigError{CreateContainerConfigError, "localhostProfile must be set if seccompProfile type is Localhost."}
	}
	name := *profile.LocalhostProfile
	if path.IsAbs(name) || slices.Contains(strings.Split(name, "/"), "..") || strings.IndexByte(name, 0) >= 0 {
		return "", &ConfigError{
			CreateContainerConfigError,
			fmt.Sprintf("seccompProfile.localhostProfile %q must be relative to the node's directory of profiles and not contain \"..\"", name),
		}
	}
	return path.Clean(name), nil
}

func seccompProfile(pod *corev1.Pod, c Container) *corev1.SeccompProfile {
	return or(containerContext(c).SeccompProfile, podContext(pod).SeccompProfile)
}

// confine compiles the container's seccomp profile into the spec. Privileged containers
// have none, as with containerd.
func confine(spec *launchspec.Spec, pod *corev1.Pod, c Container, in PodInputs, cin ContainerInputs) error {
	profile := cin.Seccomp
	wanted := seccompProfile(pod, c)
	switch {
	case privileged(c):
		return nil
	case wanted == nil && (in.SeccompDefault || in.Handler == StrictHandler), wanted != nil && wanted.Type == corev1.SeccompProfileTypeRuntimeDefault:
		profile = seccomp.Default()
	case wanted == nil || wanted.Type == corev1.SeccompProfileTypeUnconfined:
		return nil
	case profile == nil:
		return &ConfigError{CreateContainerConfigError, fmt.Sprintf("seccompProfile of type %q is not there", wanted.Type)}
	}
	program, err := compiled(profile, spec.Capabilities, in.Seccomp)
	if err != nil {
		return &ConfigError{CreateContainerError, "cannot compile seccomp profile: " + err.Error()}
	}
	spec.SeccompBPF, spec.SeccompFlags = program, profile.Flags()
	return nil
}

// defaultPrograms keeps the default profile's program by capabilities and host: there are
// few, and each takes half a millisecond to make.
var defaultPrograms sync.Map

func compiled(profile *seccomp.Profile, caps []string, host seccomp.Host) ([]byte, error) {
	if profile != seccomp.Default() {
		return profile.Compile(caps, host)
	}
	key := fmt.Sprint(host, slices.Sorted(slices.Values(caps)))
	if program, ok := defaultPrograms.Load(key); ok {
		return program.([]byte), nil
	}
	program, err := profile.Compile(caps, host)
	if err == nil {
		defaultPrograms.Store(key, program)
	}
	return program, err
}
