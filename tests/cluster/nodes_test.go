package cluster

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestNodeReady(t *testing.T) {
	node := func(cidrs []string, conditions ...corev1.NodeCondition) *corev1.Node {
		return &corev1.Node{Spec: corev1.NodeSpec{PodCIDRs: cidrs}, Status: corev1.NodeStatus{Conditions: conditions}}
	}
	cidrs := []string{"10.244.0.0/24"}
	is := func(status corev1.ConditionStatus) corev1.NodeCondition {
		return corev1.NodeCondition{Type: corev1.NodeReady, Status: status, Reason: "KubeletReady", Message: "text"}
	}
	cases := map[string]struct {
		node  *corev1.Node
		ready bool
		why   string
	}{
		"ready":        {node(cidrs, is(corev1.ConditionTrue)), true, "KubeletReady: text"},
		"not ready":    {node(cidrs, is(corev1.ConditionFalse)), false, "KubeletReady: text"},
		"no range":     {node(nil, is(corev1.ConditionTrue)), false, "no podCIDRs"},
		"no condition": {node(cidrs), false, "no Ready condition"},
	}
	for name, c := range cases {
		if ready, why := nodeReady(c.node); ready != c.ready || why != c.why {
			t.Errorf("%s: %t, %q; want %t, %q", name, ready, why, c.ready, c.why)
		}
	}
}
