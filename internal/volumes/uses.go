package volumes

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// uses says whether containers mount a volume of the pod, and whether they use it as a device.
func uses(pod *corev1.Pod, volume string) (mounts, devices bool) {
	look := func(m []corev1.VolumeMount, d []corev1.VolumeDevice) {
		mounts = mounts || slices.ContainsFunc(m, func(m corev1.VolumeMount) bool { return m.Name == volume })
		devices = devices || slices.ContainsFunc(d, func(d corev1.VolumeDevice) bool { return d.Name == volume })
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			look(list[i].VolumeMounts, list[i].VolumeDevices)
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		look(pod.Spec.EphemeralContainers[i].VolumeMounts, pod.Spec.EphemeralContainers[i].VolumeDevices)
	}
	return mounts, devices
}

// isUsed says whether any container needs the volume; for its environment, too.
func isUsed(pod *corev1.Pod, volume string) bool {
	mounts, devices := uses(pod, volume)
	return mounts || devices || readForEnvironment(pod, volume)
}

// readForEnvironment says whether a container has variables of a file in the volume.
func readForEnvironment(pod *corev1.Pod, volume string) bool {
	in := func(env []corev1.EnvVar) bool {
		return slices.ContainsFunc(env, func(e corev1.EnvVar) bool {
			return e.ValueFrom != nil && e.ValueFrom.FileKeyRef != nil && e.ValueFrom.FileKeyRef.VolumeName == volume
		})
	}
	return slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return in(c.Env) }) ||
		slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool { return in(c.Env) }) ||
		slices.ContainsFunc(pod.Spec.EphemeralContainers, func(c corev1.EphemeralContainer) bool { return in(c.Env) })
}

// Lacks says whether containers use a volume that is not in what Prepare returned: an ephemeral
// container may be the first to do so.
func Lacks(pod *corev1.Pod, mounted map[string]Mounted) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		_, has := mounted[v.Name]
		return !has && v.Image == nil && isUsed(pod, v.Name)
	})
}
