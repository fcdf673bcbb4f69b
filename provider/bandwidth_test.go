package provider

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/netns"
)

func TestPodBandwidth(t *testing.T) {
	for _, c := range []struct {
		ingress, egress string
		want            netns.Bandwidth
		problem         string
	}{
		{"10M", "1k", netns.Bandwidth{Ingress: 10_000_000, Egress: 1000}, ""},
		{"1P", "", netns.Bandwidth{Ingress: 1e15}, ""},
		{"", "1Gi", netns.Bandwidth{Egress: 1 << 30}, ""},
		{"fast", "", netns.Bandwidth{}, ingressBandwidth},
		{"", "100", netns.Bandwidth{}, egressBandwidth},
		{"-1M", "", netns.Bandwidth{}, ingressBandwidth},
		{"", "2P", netns.Bandwidth{}, egressBandwidth},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{}}}
		for name, value := range map[string]string{ingressBandwidth: c.ingress, egressBandwidth: c.egress} {
			if value != "" {
				pod.Annotations[name] = value
			}
		}
		got, err := podNetwork(pod)
		switch {
		case c.problem == "" && (err != nil || got.Bandwidth != c.want):
			t.Errorf("%q, %q: %+v %v, want %+v", c.ingress, c.egress, got.Bandwidth, err, c.want)
		case c.problem != "" && (err == nil || !strings.Contains(err.Error(), c.problem)):
			t.Errorf("%q, %q: %v, want an error that names %s", c.ingress, c.egress, err, c.problem)
		}
	}
}
