package provider

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/vk-metal/vk-metal/netns"
)

// Annotations of pods that limit their traffic, in bits per second.
const (
	ingressBandwidth = "kubernetes.io/ingress-bandwidth"
	egressBandwidth  = "kubernetes.io/egress-bandwidth"
)

// Bounds of a bandwidth as a kubelet has them (pkg/util/bandwidth).
var minBandwidth, maxBandwidth = resource.MustParse("1k"), resource.MustParse("1P")

// podBandwidth reads the annotations; a value that means nothing is an error, for the
// traffic of a pod that asks for a limit is not let loose.
func podBandwidth(pod *corev1.Pod) (b netns.Bandwidth, err error) {
	for name, to := range map[string]*uint64{ingressBandwidth: &b.Ingress, egressBandwidth: &b.Egress} {
		text, given := pod.Annotations[name]
		if !given {
			continue
		}
		q, err := resource.ParseQuantity(text)
		if err != nil {
			return b, fmt.Errorf("annotation %s: %q is not a number of bits per second such as 10M", name, text)
		}
		if q.Cmp(minBandwidth) < 0 || q.Cmp(maxBandwidth) > 0 {
			return b, fmt.Errorf("annotation %s: %s bits per second is not between 1k and 1P", name, text)
		}
		*to = uint64(q.Value())
	}
	return b, nil
}
