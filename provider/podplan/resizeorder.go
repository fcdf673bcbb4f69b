package podplan

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Waiting resizes are judged in turn, so that who asks last does not overtake.

// Deferred is a pod as it asks to be resized, and since when.
type Deferred struct {
	Pod   *corev1.Pod
	Since time.Time
}

// Compare says whose resize is judged first, as a kubelet does (pkg/kubelet/allocation): that of the
// pod with the higher priority, of a guaranteed pod, of who waits longer.
func (d Deferred) Compare(o Deferred) int {
	if a, b := priorityOf(d.Pod), priorityOf(o.Pod); a != b {
		return int(max(-1, min(1, int64(b)-int64(a))))
	}
	if a, b := QOS(d.Pod) == corev1.PodQOSGuaranteed, QOS(o.Pod) == corev1.PodQOSGuaranteed; a != b {
		if a {
			return -1
		}
		return 1
	}
	if order := d.Since.Compare(o.Since); order != 0 {
		return order
	}
	return strings.Compare(string(d.Pod.UID), string(o.Pod.UID))
}

func priorityOf(pod *corev1.Pod) int32 {
	if pod.Spec.Priority == nil {
		return 0
	}
	return *pod.Spec.Priority
}

// AdmitResizeInTurn is AdmitResize once those of the others that go before have what they can be
// given; first are these. place has all pods as granted, the ones that ask too.
func AdmitResizeInTurn(mine Deferred, waiting []Deferred, place Place) (reason, message string, first []types.UID) {
	waiting = slices.Clone(waiting)
	slices.SortFunc(waiting, Deferred.Compare)
	for _, other := range waiting {
		if other.Compare(mine) >= 0 {
			break
		}
		rest := place.without(other.Pod.UID)
		if reason, _ := AdmitResize(other.Pod, rest); reason == "" {
			rest.Others = append(rest.Others, other.Pod)
			place = rest
			first = append(first, other.Pod.UID)
		}
	}
	reason, message = AdmitResize(mine.Pod, place.without(mine.Pod.UID))
	return reason, message, first
}

func (p Place) without(uid types.UID) Place {
	p.Others = slices.DeleteFunc(slices.Clone(p.Others), func(pod *corev1.Pod) bool { return pod.UID == uid })
	return p
}

// ResizeMessage is the message of a kubelet's event of a resize (pkg/kubelet/events/resize.go): what
// has come of it, and the resources of pod; cause may be empty.
func ResizeMessage(what string, pod *corev1.Pod, cause string) string {
	type container struct {
		Name      string                      `json:"name"`
		Resources corev1.ResourceRequirements `json:"resources"`
	}
	list := func(containers []corev1.Container) []container {
		var out []container
		for _, c := range containers {
			out = append(out, container{c.Name, c.Resources})
		}
		return out
	}
	text, err := json.Marshal(struct {
		InitContainers []container `json:"initContainers,omitempty"`
		Containers     []container `json:"containers,omitempty"`
		Generation     int64       `json:"generation"`
		Error          string      `json:"error,omitempty"`
	}{list(pod.Spec.InitContainers), list(pod.Spec.Containers), pod.Generation, cause})
	if err != nil {
		return "Pod resize " + what
	}
	return "Pod resize " + what + ": " + string(text)
}
