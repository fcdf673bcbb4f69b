package podplan

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Refusal names a field of the pod that cannot be honoured. A pod with refusals is not
// started: nothing of a spec is ever left out in silence.
type Refusal struct {
	Field  string `json:"field"`
	Reason string `json:"reason"`
	// Admission, when set, fails the pod for good with this status.reason, as a kubelet's
	// admission does; else the pod waits.
	Admission string `json:"admission,omitempty"`
	// Only, when set, is the one container that is held back: an ephemeral one cannot be
	// taken back from a pod, and must not cost the others their restarts.
	Only string `json:"only,omitempty"`
}

func (r Refusal) String() string { return r.Field + ": " + r.Reason }

// Policy is what the node's configuration allows.
type Policy struct {
	DenyPrivileged bool
	UnsafeSysctls  []string
	// AppArmor says that the host's kernel enforces it.
	AppArmor bool
	// HugePages says that the node can limit huge pages.
	HugePages bool
	// NoUserNamespaces is why the host cannot give pods user namespaces, empty where it can.
	NoUserNamespaces string
}

// containerRules are the table of what is refused.
var containerRules = []struct {
	field   string
	reason  string
	refused func(*corev1.PodSpec, Container) bool
}{
	{"restartPolicyRules", "only the actions Restart and RestartAllContainers are known to this version of vk-metal", func(_ *corev1.PodSpec, c Container) bool {
		return slices.ContainsFunc(c.RestartPolicyRules, func(r corev1.ContainerRestartRule) bool {
			return r.Action != corev1.ContainerRestartRuleActionRestart && r.Action != corev1.ContainerRestartRuleActionRestartAllContainers
		})
	}},
}

// Refusals lists what of the pod cannot be honoured on this node.
func Refusals(pod *corev1.Pod, policy Policy) []Refusal {
	refusals := slices.Concat(admission(pod, policy), hostSecurity(pod, policy), linesOf(pod), usersRefused(pod, policy))
	refusals = append(refusals, hugePagesRefused(pod, policy)...)
	for _, c := range Containers(pod) {
		for _, rule := range containerRules {
			if rule.refused(&pod.Spec, c) {
				refusals = append(refusals, Refusal{Field: c.Field + "." + rule.field, Reason: rule.reason, Only: only(c)})
			}
		}
	}
	return refusals
}

// only is an ephemeral container's name.
func only(c Container) string {
	if c.Role == RoleEphemeral {
		return c.Name
	}
	return ""
}

// admission lists what makes a kubelet fail a pod for good.
func admission(pod *corev1.Pod, policy Policy) []Refusal {
	var refusals []Refusal
	if os := pod.Spec.OS; os != nil && os.Name != corev1.Linux {
		refusals = append(refusals, Refusal{
			Field: "spec.os.name", Admission: "PodOSNotSupported",
			Reason: fmt.Sprintf("Failed to admit pod as the OS field doesn't match node OS: %q", os.Name),
		})
	}
	if arch, ok := pod.Spec.NodeSelector[corev1.LabelOSStable]; ok && arch != "linux" {
		refusals = append(refusals, Refusal{
			Field: "spec.nodeSelector", Admission: "PodOSSelectorNodeLabelDoesNotMatch",
			Reason: "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
		})
	}
	for i, s := range podContext(pod).Sysctls {
		if problem := badSysctl(pod, strings.ReplaceAll(s.Name, "/", "."), policy.UnsafeSysctls); problem != "" {
			refusals = append(refusals, Refusal{
				Field:     fmt.Sprintf("spec.securityContext.sysctls[%d]", i),
				Admission: "SysctlForbidden", Reason: problem,
			})
		}
	}
	if policy.DenyPrivileged {
		for _, c := range Containers(pod) {
			if privileged(c) {
				refusals = append(refusals, Refusal{Field: c.Field + ".securityContext.privileged", Reason: "this node allows no privileged containers", Only: only(c)})
			}
		}
	}
	return refusals
}

// safeSysctls are Kubernetes 1.35's (pkg/kubelet/sysctl/safe_sysctls.go).
var safeSysctls = []string{
	"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
	"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time",
	"net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes",
	"net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}

func badSysctl(pod *corev1.Pod, name string, allowed []string) string {
	switch {
	case !slices.Contains(safeSysctls, name) && !slices.ContainsFunc(allowed, func(a string) bool { return sysctlMatches(a, name) }):
		return fmt.Sprintf("forbidden sysctl: %q not allowlisted", name)
	case strings.HasPrefix(name, "net."):
		if pod.Spec.HostNetwork {
			return fmt.Sprintf("forbidden sysctl: %q not allowed with host net enabled", name)
		}
	case strings.HasPrefix(name, "kernel.shm"), strings.HasPrefix(name, "kernel.msg"), name == "kernel.sem", strings.HasPrefix(name, "fs.mqueue."):
		if pod.Spec.HostIPC {
			return fmt.Sprintf("forbidden sysctl: %q not allowed with host ipc enabled", name)
		}
	default:
		return fmt.Sprintf("forbidden sysctl: %q is not namespaced", name)
	}
	return ""
}

func sysctlMatches(allowed, name string) bool {
	if prefix, ok := strings.CutSuffix(allowed, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return allowed == name
}
