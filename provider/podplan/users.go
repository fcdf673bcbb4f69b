package podplan

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// OwnUsers says whether the pod has a user namespace of its own (KEP-127).
func OwnUsers(pod *corev1.Pod) bool { return pod.Spec.HostUsers != nil && !*pod.Spec.HostUsers }

// usersRefused says what of a pod with a user namespace cannot be had, besides what the API
// server refuses: namespaces of the host cannot belong to a pod, nor may its mounts reach it.
func usersRefused(pod *corev1.Pod, policy Policy) []Refusal {
	if !OwnUsers(pod) {
		return unmasked(pod)
	}
	var refusals []Refusal
	if policy.NoUserNamespaces != "" {
		refusals = append(refusals, Refusal{Field: "spec.hostUsers", Reason: policy.NoUserNamespaces})
	}
	for field, host := range map[string]bool{
		"spec.hostNetwork": pod.Spec.HostNetwork, "spec.hostPID": pod.Spec.HostPID, "spec.hostIPC": pod.Spec.HostIPC,
	} {
		if host {
			refusals = append(refusals, Refusal{Field: field, Reason: "cannot be combined with hostUsers: false"})
		}
	}
	for _, c := range Containers(pod) {
		if len(c.VolumeDevices) > 0 {
			refusals = append(refusals, Refusal{
				Field: c.Field + ".volumeDevices", Reason: "cannot be combined with hostUsers: false", Only: only(c),
			})
		}
		for _, mount := range c.VolumeMounts {
			if propagation(mount.MountPropagation) == "rshared" {
				refusals = append(refusals, Refusal{
					Field: c.Field + ".volumeMounts{" + mount.Name + "}.mountPropagation", Only: only(c),
					Reason: "Bidirectional cannot be combined with hostUsers: false",
				})
			}
		}
	}
	return refusals
}

// unmasked names the containers that ask for an unmasked /proc of the host's users.
func unmasked(pod *corev1.Pod) []Refusal {
	var refusals []Refusal
	for _, c := range Containers(pod) {
		if unmaskedProc(c) {
			refusals = append(refusals, Refusal{
				Field: c.Field + ".securityContext.procMount", Reason: "Unmasked needs hostUsers: false", Only: only(c),
			})
		}
	}
	return refusals
}

func unmaskedProc(c Container) bool {
	mount := containerContext(c).ProcMount
	return mount != nil && *mount == corev1.UnmaskedProcMount
}

// checkUsers makes sure that a pod that asks for a user namespace never runs without.
func checkUsers(pod *corev1.Pod, in PodInputs, image Image) error {
	switch {
	case !OwnUsers(pod):
		return nil
	case in.Users == nil:
		return &ConfigError{CreateContainerError, "the pod's user namespace is not there"}
	case image.Host:
		return &ConfigError{CreateContainerError, "spec.hostUsers: images of the host cannot run in a user namespace; use an image of a registry, or hostUsers: true"}
	}
	return nil
}

// PodUsers is the pod's user namespace, nil for the host's.
type PodUsers = launchspec.UserNamespace
