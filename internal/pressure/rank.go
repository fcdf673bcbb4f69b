package pressure

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Usage is what a pod takes of everything that may be short.
type Usage struct {
	// Memory is the working set, Disk counts writable layers, logs and local volumes; bytes.
	Memory, Disk      int64
	Inodes, Processes int64
	// Containers have their part of the memory or the disk, whichever is short, by name; bytes.
	Containers map[string]int64
}

// Candidate is a pod that could go.
type Candidate struct {
	Pod *corev1.Pod
	// Usage is nil where it could not be measured.
	Usage *Usage
}

// of is the usage of what the signal measures, and whether it is known.
func (c Candidate) of(s Signal) (used int64, known bool) {
	if c.Usage == nil {
		return 0, false
	}
	switch s.Resource() {
	case corev1.ResourceMemory:
		return c.Usage.Memory, true
	case resourceInodes:
		return c.Usage.Inodes, true
	case resourcePids:
		return c.Usage.Processes, true
	}
	return c.Usage.Disk, true
}

// standing is what decides who goes first, in this order.
type standing struct {
	known, within bool
	priority      int32
	above         int64
}

func (c Candidate) standing(s Signal) standing {
	used, known := c.of(s)
	requested := int64(0)
	if s.Resource() != resourcePids { // nobody requests those
		requests := resourcehelper.PodRequests(c.Pod, resourcehelper.PodResourcesOptions{})
		requested = requests.Name(s.Resource(), s.format()).Value()
	}
	st := standing{known: known, within: used <= requested, above: used - requested}
	if s.Resource() == resourcePids {
		st.within = false // only priority and number count
	}
	if c.Pod.Spec.Priority != nil {
		st.priority = *c.Pod.Spec.Priority
	}
	return st
}

// Rank orders candidates: who comes first goes first. Pods whose usage is not known, then those
// that use more than they requested; then by priority; then by how much more they use.
func Rank(s Signal, candidates []Candidate) []Candidate {
	ranked := slices.Clone(candidates)
	slices.SortStableFunc(ranked, func(a, b Candidate) int {
		sa, sb := a.standing(s), b.standing(s)
		if !sa.known || !sb.known {
			return cmp.Or(truth(sa.known)-truth(sb.known), byUID(a, b))
		}
		return cmp.Or(truth(sa.within)-truth(sb.within), cmp.Compare(sa.priority, sb.priority), cmp.Compare(sb.above, sa.above), byUID(a, b))
	})
	return ranked
}

// byUID makes the order of equals the same each time.
func byUID(a, b Candidate) int { return strings.Compare(string(a.Pod.UID), string(b.Pod.UID)) }

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}

// PodGrace is how long a pod has that goes for the threshold.
func (s Settings) PodGrace(t Threshold, pod *corev1.Pod) time.Duration {
	if t.Hard() {
		return hardGrace
	}
	if own := pod.Spec.TerminationGracePeriodSeconds; own != nil {
		return min(s.MaxPodGrace, time.Duration(*own)*time.Second)
	}
	return s.MaxPodGrace
}

// hardGrace is the kubelet's immediateEvictionGracePeriodSeconds.
const hardGrace = time.Second

// Message is what the pod's status and event say, in a kubelet's words.
func Message(t Threshold, c Candidate, seen Observations) string {
	name := t.Signal.Resource()
	text := fmt.Sprintf("The node was low on resource: %s. ", name)
	if o, known := seen[t.Signal]; known {
		least := resource.NewQuantity(t.Value.Of(o.Capacity), t.Signal.format())
		text += fmt.Sprintf("Threshold quantity: %s, available: %s. ", least, resource.NewQuantity(o.Available, t.Signal.format()))
	}
	if c.Usage == nil {
		return text
	}
	if r := c.Pod.Spec.Resources; r != nil && name == corev1.ResourceMemory {
		if request, ok := r.Requests[name]; ok {
			text += fmt.Sprintf("Pod %s was using %s, request is %s, has larger consumption of %s. ",
				c.Pod.Name, resource.NewQuantity(c.Usage.Memory, resource.BinarySI), request.String(), name)
		}
	}
	if name == resourceInodes || name == resourcePids {
		return text
	}
	for _, container := range slices.Concat(c.Pod.Spec.Containers, c.Pod.Spec.InitContainers) {
		used, known := c.Usage.Containers[container.Name]
		request := container.Resources.Requests[name]
		if known && used > request.Value() {
			text += fmt.Sprintf("Container %s was using %s, request is %s, has larger consumption of %s. ",
				container.Name, resource.NewQuantity(used, resource.BinarySI), request.String(), name)
		}
	}
	return text
}
