package podplan

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Restarts says whether a container that ended with exitCode is started again: by its own
// restart rules and policy, else by the pod's.
func Restarts(pod *corev1.Pod, c Container, exitCode int) bool {
	switch c.Role {
	case RoleSidecar:
		return true
	case RoleEphemeral:
		return false
	}
	if action(c, exitCode) != "" {
		return true
	}
	policy := pod.Spec.RestartPolicy
	if c.RestartPolicy != nil {
		policy = corev1.RestartPolicy(*c.RestartPolicy)
	}
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return exitCode != 0
	}
	return c.Role == RoleMain || exitCode != 0
}

// action is that of the first of the container's rules that matches the exit code, "" if none does.
func action(c Container, exitCode int) corev1.ContainerRestartRuleAction {
	for _, rule := range c.RestartPolicyRules {
		if ruleMatches(rule, exitCode) {
			return rule.Action
		}
	}
	return ""
}

func ruleMatches(rule corev1.ContainerRestartRule, exitCode int) bool {
	if rule.ExitCodes == nil {
		return false
	}
	listed := slices.Contains(rule.ExitCodes.Values, int32(exitCode))
	return listed == (rule.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn)
}

// restartsAfterProbe says whether a container killed for a failed probe comes back; exit
// codes do not count there.
func restartsAfterProbe(pod *corev1.Pod, c Container) bool {
	if c.Role == RoleSidecar {
		return true
	}
	if c.RestartPolicy != nil {
		return *c.RestartPolicy != corev1.ContainerRestartPolicyNever
	}
	return pod.Spec.RestartPolicy != corev1.RestartPolicyNever
}
