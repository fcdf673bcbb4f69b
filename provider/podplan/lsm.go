package podplan

import (
	corev1 "k8s.io/api/core/v1"
)

// hostSecurity refuses what asks for the host's security modules. AppArmor profiles on a
// host without AppArmor fail the pod, as a kubelet does (pkg/security/apparmor); SELinux
// options on a host without SELinux mean nothing, as for a container runtime. Where the
// host has them nothing of ours applies them yet, and the pod waits.
func hostSecurity(pod *corev1.Pod, policy Policy) []Refusal {
	var refusals []Refusal
	add := func(field, only string, profile *corev1.AppArmorProfile, options *corev1.SELinuxOptions) {
		if profile != nil && profile.Type != corev1.AppArmorProfileTypeUnconfined {
			r := Refusal{Field: field + ".appArmorProfile", Reason: notYet, Only: only}
			switch {
			case !policy.AppArmor && only != "":
				r.Reason = "AppArmor is not enabled on the host"
			case !policy.AppArmor:
				r.Admission, r.Reason = "AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host"
			}
			refusals = append(refusals, r)
		}
		if policy.SELinux && options != nil && *options != (corev1.SELinuxOptions{}) {
			refusals = append(refusals, Refusal{Field: field + ".seLinuxOptions", Reason: notYet, Only: only})
		}
	}
	add("spec.securityContext", "", podContext(pod).AppArmorProfile, podContext(pod).SELinuxOptions)
	for _, c := range Containers(pod) {
		sc := containerContext(c)
		add(c.Field+".securityContext", only(c), sc.AppArmorProfile, sc.SELinuxOptions)
	}
	return refusals
}
