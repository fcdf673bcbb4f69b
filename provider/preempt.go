package provider

import (
	"errors"
	"math"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

// errNoRoomYet says that a critical pod waits for others to go.
var errNoRoomYet = errors.New("pods that have to make room have not ended yet")

// preempt ends pods in favour of a critical one, in a kubelet's words (pkg/kubelet/preemption).
// It is idempotent.
func (p *Provider) preempt(pod *corev1.Pod, victims []*corev1.Pod) {
	for _, victim := range victims {
		w := p.byUID(victim.UID)
		if w == nil {
			continue
		}
		const reason, message = "Preempting", "Preempted in order to admit critical pod"
		if w.evict(evictRecord{podplan.Ending{Reason: reason, Message: message, Disrupts: true}, math.MaxInt64}) {
			w.log.Info("Ending a pod to make room", "for", pod.Namespace+"/"+pod.Name)
			w.event(victim, nil, corev1.EventTypeWarning, reason, message)
		}
	}
}
