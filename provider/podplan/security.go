package podplan

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// defaultCapabilities are containerd's (oci/spec.go, defaultUnixCaps).
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// allCapabilities are those of Linux 5.9 and later (linux/capability.h).
var allCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// maskedPaths and readonlyPaths are a container's in Kubernetes 1.35
// (pkg/securitycontext/util.go).
var (
	maskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

func privileged(c Container) bool {
	sc := c.SecurityContext
	return sc != nil && sc.Privileged != nil && *sc.Privileged
}

// secure fills in what limits the process.
func secure(spec *launchspec.Spec, c Container) {
	sc := c.SecurityContext
	spec.Capabilities = capabilities(sc)
	if privileged(c) {
		spec.Privileged, spec.Capabilities = true, allCapabilities
		return
	}
	if !unmaskedProc(c) { // else nothing of /proc and /sys is hidden, as under a kubelet
		spec.MaskedPaths, spec.ReadonlyPaths = maskedPaths, readonlyPaths
	}
	spec.NoNewPrivileges = sc != nil && sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation
}

// unknownCapability names a capability to add that the kernel does not know, "" for none. What
// is to be dropped may be unknown: nobody has it.
func unknownCapability(sc *corev1.SecurityContext) string {
	if sc == nil || sc.Capabilities == nil {
		return ""
	}
	for _, name := range normalized(sc.Capabilities.Add) {
		if name != "CAP_ALL" && !slices.Contains(allCapabilities, name) {
			return name
		}
	}
	return ""
}

// capabilities applies add and drop in containerd's order: ALL first, single names after.
func capabilities(sc *corev1.SecurityContext) []string {
	return capabilitiesFrom(defaultCapabilities, sc)
}

func capabilitiesFrom(base []string, sc *corev1.SecurityContext) []string {
	caps := slices.Clone(base)
	if sc == nil || sc.Capabilities == nil {
		return caps
	}
	add, drop := normalized(sc.Capabilities.Add), normalized(sc.Capabilities.Drop)
	if slices.Contains(add, "CAP_ALL") {
		caps = slices.Clone(allCapabilities)
	}
	if slices.Contains(drop, "CAP_ALL") {
		caps = []string{}
	}
	for _, name := range add {
		if name != "CAP_ALL" && !slices.Contains(caps, name) {
			caps = append(caps, name)
		}
	}
	return slices.DeleteFunc(caps, func(name string) bool { return slices.Contains(drop, name) })
}

func normalized(names []corev1.Capability) []string {
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = strings.ToUpper(string(name))
		if !strings.HasPrefix(out[i], "CAP_") {
			out[i] = "CAP_" + out[i]
		}
	}
	return out
}

// userOf merges the pod's and the container's settings over the image's user and refuses
// root where runAsNonRoot says so.
func userOf(pod *corev1.Pod, c Container, image Image) (launchspec.User, error) {
	psc, sc := podContext(pod), containerContext(c)
	uid, gid := or(sc.RunAsUser, psc.RunAsUser), or(sc.RunAsGroup, psc.RunAsGroup)
	if problem := breaksNonRoot(or(sc.RunAsNonRoot, psc.RunAsNonRoot), uid, image.User); problem != "" {
		return launchspec.User{}, &ConfigError{
			CreateContainerConfigError,
			fmt.Sprintf("%s (pod: %q, container: %s)", problem, fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID), c.Name),
		}
	}
	user := launchspec.User{UID: id(uid), GID: id(gid)}
	if uid == nil {
		user.Name = image.User
	}
	for _, g := range psc.SupplementalGroups {
		user.Groups = append(user.Groups, uint32(g))
	}
	if psc.FSGroup != nil && !slices.Contains(user.Groups, uint32(*psc.FSGroup)) {
		user.Groups = append(user.Groups, uint32(*psc.FSGroup))
	}
	policy := psc.SupplementalGroupsPolicy
	user.StrictGroups = policy != nil && *policy == corev1.SupplementalGroupsPolicyStrict
	return user, nil
}

// breaksNonRoot says why a container is not known to run as another user than root, in a
// kubelet's words (pkg/kubelet/kuberuntime/security_context.go); "" if it is.
func breaksNonRoot(nonRoot *bool, uid *int64, imageUser string) string {
	if nonRoot == nil || !*nonRoot {
		return ""
	}
	if uid != nil {
		if *uid == 0 {
			return "container's runAsUser breaks non-root policy"
		}
		return ""
	}
	name, _, _ := strings.Cut(imageUser, ":")
	number, err := strconv.ParseUint(name, 10, 32)
	switch {
	case name == "" || err == nil && number == 0:
		return "container has runAsNonRoot and image will run as root"
	case err != nil:
		return fmt.Sprintf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root", name)
	}
	return ""
}

func podContext(pod *corev1.Pod) corev1.PodSecurityContext {
	if pod.Spec.SecurityContext == nil {
		return corev1.PodSecurityContext{}
	}
	return *pod.Spec.SecurityContext
}

func containerContext(c Container) corev1.SecurityContext {
	if c.SecurityContext == nil {
		return corev1.SecurityContext{}
	}
	return *c.SecurityContext
}

func or[T any](first, second *T) *T {
	if first != nil {
		return first
	}
	return second
}

func id(n *int64) *uint32 {
	if n == nil {
		return nil
	}
	v := uint32(*n)
	return &v
}

// NetSysctls are the pod's sysctls of its network namespace, containerSysctls the others.
func NetSysctls(pod *corev1.Pod) map[string]string {
	return sysctls(pod, func(name string) bool { return strings.HasPrefix(name, "net.") })
}

func containerSysctls(pod *corev1.Pod) map[string]string {
	return sysctls(pod, func(name string) bool { return !strings.HasPrefix(name, "net.") })
}

func sysctls(pod *corev1.Pod, want func(string) bool) map[string]string {
	var out map[string]string
	for _, s := range podContext(pod).Sysctls {
		name := strings.ReplaceAll(s.Name, "/", ".")
		if want(name) {
			if out == nil {
				out = map[string]string{}
			}
			out[name] = s.Value
		}
	}
	return out
}
