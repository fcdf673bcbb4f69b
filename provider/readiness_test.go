package provider

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestReadinessIsTold: with every status, as ready once the addresses are given back, and
// never for a pod on the host's network.
func TestReadinessIsTold(t *testing.T) {
	var told string
	w := &worker{p: &Provider{deps: Deps{Readiness: func(ips []netip.Addr, ready bool) { told = fmt.Sprint(ips, ready) }}}}
	status := func(ready corev1.ConditionStatus, ips ...corev1.PodIP) *corev1.PodStatus {
		return &corev1.PodStatus{PodIPs: ips, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}}
	}
	ip := corev1.PodIP{IP: "10.0.0.1"}
	step := func(pod *corev1.Pod, s *corev1.PodStatus, want string) {
		t.Helper()
		told = ""
		if w.tellReadiness(pod, s); told != want {
			t.Errorf("told %q, want %q", told, want)
		}
	}
	pod := &corev1.Pod{}
	step(pod, status(corev1.ConditionFalse, ip), "[10.0.0.1] false")
	step(pod, status(corev1.ConditionTrue, ip), "[10.0.0.1] true")
	step(pod, status(corev1.ConditionFalse, ip), "[10.0.0.1] false")
	w.released = true
	step(pod, status(corev1.ConditionFalse), "[10.0.0.1] true")
	step(&corev1.Pod{Spec: corev1.PodSpec{HostNetwork: true}}, status(corev1.ConditionFalse, ip), "")
}
