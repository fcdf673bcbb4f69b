package podplan

import (
	"cmp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// SystemCritical is the lowest priority of the system's classes.
const SystemCritical = 2_000_000_000

// Preempt picks the pods that have to go so that a critical pod, which Admit refused for want
// of a resource, has room: those that matter least, and no more than needed. It is empty when
// that would not help, or the want is another.
func Preempt(pod *corev1.Pod, refusal *Refusal, place Place, critical func(*corev1.Pod) bool) []*corev1.Pod {
	if refusal == nil || !strings.HasPrefix(refusal.Admission, "OutOf") || !critical(pod) {
		return nil
	}
	candidates := slices.DeleteFunc(slices.Clone(place.Others), critical)
	slices.SortStableFunc(candidates, func(a, b *corev1.Pod) int {
		return cmp.Or(qosRank(a)-qosRank(b), cmp.Compare(priority(a), priority(b)),
			cmp.Compare(cpu(a), cpu(b)), strings.Compare(string(a.UID), string(b.UID)))
	})
	var victims []*corev1.Pod
	for _, c := range candidates {
		victims = append(victims, c)
		if Admit(pod, without(place, victims)) == nil {
			return spare(pod, place, victims)
		}
	}
	return nil
}

// spare lets go of victims, those that matter most first, that need not be.
func spare(pod *corev1.Pod, place Place, victims []*corev1.Pod) []*corev1.Pod {
	for i := len(victims) - 1; i >= 0; i-- {
		fewer := slices.Delete(slices.Clone(victims), i, i+1)
		if Admit(pod, without(place, fewer)) == nil {
			victims = fewer
		}
	}
	return victims
}

func without(place Place, victims []*corev1.Pod) Place {
	place.Others = slices.DeleteFunc(slices.Clone(place.Others), func(p *corev1.Pod) bool { return slices.Contains(victims, p) })
	return place
}

func qosRank(pod *corev1.Pod) int {
	return slices.Index([]corev1.PodQOSClass{corev1.PodQOSBestEffort, corev1.PodQOSBurstable, corev1.PodQOSGuaranteed}, QOS(pod))
}

func priority(pod *corev1.Pod) int32 {
	if pod.Spec.Priority == nil {
		return 0
	}
	return *pod.Spec.Priority
}

func cpu(pod *corev1.Pod) int64 {
	return figure(corev1.ResourceCPU, requestsOf(pod)[corev1.ResourceCPU])
}
