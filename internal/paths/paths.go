// Package paths owns the layout on disk: what lies where, and what survives what.
// It joins strings and touches nothing. Every element that comes from a pod is
// checked by its caller to be a UID or a DNS label.
package paths

import (
	"path/filepath"
	"strconv"
)

// Layout is the set of root directories; tests move them.
type Layout struct {
	Run string // /run/vk-metal: gone after a reboot
	Lib string // /var/lib/vk-metal: kept
	Log string // /var/log/pods: kept, the kubelet's layout
	Etc string // /etc/vk-metal
	// Kubelet is the kubelet's own tree, for what others hard-code (/var/lib/kubelet).
	Kubelet string
}

// Default is the layout of an installed node.
func Default() Layout {
	return Layout{
		Run: "/run/vk-metal", Lib: "/var/lib/vk-metal", Log: "/var/log/pods",
		Etc: "/etc/vk-metal", Kubelet: "/var/lib/kubelet",
	}
}

// PodRun is the pod's directory of run-time state (0700 root).
func (l Layout) PodRun(uid string) string { return filepath.Join(l.Run, "pods", uid) }

// AttemptRun holds launch.json, the FIFOs and the records of one container attempt.
func (l Layout) AttemptRun(uid, container string, attempt int) string {
	return filepath.Join(l.PodRun(uid), "containers", container, strconv.Itoa(attempt))
}

// LaunchSpec, ExitRecord and ErrorRecord are the files of one attempt.
func (l Layout) LaunchSpec(uid, container string, attempt int) string {
	return filepath.Join(l.AttemptRun(uid, container, attempt), "launch.json")
}

// ExitRecord is where ExecStopPost leaves a launchspec.Exit.
func (l Layout) ExitRecord(uid, container string, attempt int) string {
	return filepath.Join(l.AttemptRun(uid, container, attempt), "exit.json")
}

// ErrorRecord is where the launcher leaves a launchspec.StartError.
func (l Layout) ErrorRecord(uid, container string, attempt int) string {
	return filepath.Join(l.AttemptRun(uid, container, attempt), "start-error.json")
}

// Namespace is where a namespace of the pod is bound ("net", "ipc").
func (l Layout) Namespace(uid, kind string) string { return filepath.Join(l.PodRun(uid), "ns", kind) }

// UserIDs holds the claims of pods on the host's user and group IDs.
func (l Layout) UserIDs() string { return filepath.Join(l.Run, "user-ids") }

// SELinuxLevels holds which level each pod has.
func (l Layout) SELinuxLevels() string { return filepath.Join(l.Run, "selinux-levels") }

// LogStreams is the directory that the log writer watches: one sub-directory per
// attempt (see cmd/vk-metal-log).
func (l Layout) LogStreams() string { return filepath.Join(l.Run, "log-streams") }

// LogStream is the directory of one attempt's FIFOs and its stream.json.
func (l Layout) LogStream(uid, container string, attempt int) string {
	return filepath.Join(l.LogStreams(), uid+"."+container+"."+strconv.Itoa(attempt))
}

// BGP holds what of BGP must survive the agent, BGPSocket answers vk-metal bgp.
func (l Layout) BGP() string       { return filepath.Join(l.Run, "bgp") }
func (l Layout) BGPSocket() string { return filepath.Join(l.BGP(), "socket") }

// EncryptionSocket answers vk-metal encryption.
func (l Layout) EncryptionSocket() string { return filepath.Join(l.Run, "wireguard", "socket") }

// CNI is the cache of network plugins' results: it outlives a reboot, as what they keep does.
func (l Layout) CNI() string { return filepath.Join(l.Lib, "cni") }

// PodLib is the pod's directory of kept state: volumes, writable layers, etc-hosts.
func (l Layout) PodLib(uid string) string { return filepath.Join(l.Lib, "pods", uid) }

// Layers holds the writable layers of a container's attempts.
func (l Layout) Layers(uid, container string) string {
	return filepath.Join(l.PodLib(uid), "layers", container)
}

// Layer is the writable layer of one attempt: upper and work lie below.
func (l Layout) Layer(uid, container string, attempt int) string {
	return filepath.Join(l.Layers(uid, container), strconv.Itoa(attempt))
}

// Images is the content store and the unpacked layers.
func (l Layout) Images() string { return filepath.Join(l.Lib, "images") }

// HostRoots is where disk images that are host images are mounted.
func (l Layout) HostRoots() string { return filepath.Join(l.Run, "roots") }

// Private are the directories that hold other pods' secrets and the node's identity.
func (l Layout) Private() []string { return []string{l.Run, l.Lib, l.Log, l.Etc, l.Kubelet} }

// SeccompProfiles is the kubelet's directory of Localhost profiles.
func (l Layout) SeccompProfiles() string { return filepath.Join(l.Kubelet, "seccomp") }

// PluginSockets is where plugins of the node register themselves.
func (l Layout) PluginSockets() string { return filepath.Join(l.Kubelet, "plugins_registry") }

// Plugins is where plugins keep what is theirs, and DevicePlugins where device plugins have
// their sockets.
func (l Layout) Plugins() string       { return filepath.Join(l.Kubelet, "plugins") }
func (l Layout) DevicePlugins() string { return filepath.Join(l.Kubelet, "device-plugins") }

// PodResources is where monitoring agents ask for pods' devices.
func (l Layout) PodResources() string { return filepath.Join(l.Kubelet, "pod-resources") }

// KubeletPods holds what is mounted for pods by plugins, and KubeletPod one pod's part.
func (l Layout) KubeletPods() string          { return filepath.Join(l.Kubelet, "pods") }
func (l Layout) KubeletPod(uid string) string { return filepath.Join(l.KubeletPods(), uid) }

// KubeletVolume is where a volume of a pod is mounted; plugin is an escaped plugin name
// (kubernetes.io~csi).
func (l Layout) KubeletVolume(uid, plugin, name string) string {
	return filepath.Join(l.KubeletPod(uid), "volumes", plugin, name)
}

// PKI holds the rotated client and serving certificates.
func (l Layout) PKI() string { return filepath.Join(l.Lib, "pki") }

// PodLogs is the kubelet's directory of a pod's logs.
func (l Layout) PodLogs(namespace, name, uid string) string {
	return filepath.Join(l.Log, namespace+"_"+name+"_"+uid)
}

// ContainerLogs holds the logs of a container's attempts.
func (l Layout) ContainerLogs(namespace, name, uid, container string) string {
	return filepath.Join(l.PodLogs(namespace, name, uid), container)
}

// ContainerLog is the CRI log file of one attempt.
func (l Layout) ContainerLog(namespace, name, uid, container string, attempt int) string {
	return filepath.Join(l.ContainerLogs(namespace, name, uid, container), strconv.Itoa(attempt)+".log")
}
