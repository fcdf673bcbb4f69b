package volumes

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Error says what a kubelet's FailedMount event says.
func (e *Error) Error() string {
	named := cmp.Or(e.Named, e.Volume)
	if e.Op == opProcess {
		return "Unable to attach or mount volumes: " + unready([]string{named}, nil, []string{named}, e.Err)
	}
	return fmt.Sprintf("%s failed for volume %q : %v", cmp.Or(e.Op, opSetUp), named, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func unready(unmounted, unattached, unprocessed []string, err error) string {
	return fmt.Sprintf("unmounted volumes=%v, unattached volumes=%v, failed to process volumes=%v: %v",
		unmounted, unattached, unprocessed, err)
}

// reasons are those of a kubelet's events, by what failed; others are FailedMount.
var reasons = map[string]string{
	opMap: "FailedMapVolume", opAttach: "FailedAttachVolume", opTearDown: "FailedUnmount", opUnmap: "FailedUnmount",
}

// Events are a kubelet's events for what Prepare or Remove returned: reason and message.
func Events(err error) iter.Seq2[string, string] {
	return func(yield func(reason, message string) bool) {
		for _, e := range located(err) {
			if !e.Quiet && !yield(cmp.Or(reasons[e.Op], "FailedMount"), e.Error()) {
				return
			}
		}
	}
}

// Late is the text of a kubelet's FailedMount event for volumes that it has waited for long
// enough; that of 1.35 only logs it. err is what Prepare returned last, nil while it has not yet; the text is empty if no
// volume is missing.
func Late(pod *corev1.Pod, err, why error) string {
	if text := missing(pod, err, why); text != "" {
		return "Unable to attach or mount volumes: " + text
	}
	return ""
}

// Rejection is why the pod cannot be on this node, in a kubelet's words; empty if volumes may still
// be had.
func Rejection(pod *corev1.Pod, err error) string {
	for _, e := range located(err) {
		if e.Full {
			return "Node has reached its volume attachment limit, rejecting pod. " + missing(pod, err, e.Err)
		}
	}
	return ""
}

// missing lists the volumes that containers wait for; empty if there is none.
func missing(pod *corev1.Pod, err, why error) string {
	var unmounted, unattached, unprocessed []string
	if err == nil {
		unmounted = used(pod)
	}
	for _, e := range located(err) {
		if !slices.Contains(used(pod), e.Volume) {
			continue // in no container: nothing waits for it
		}
		unmounted = append(unmounted, e.Volume)
		switch e.Op {
		case opAttach:
			unattached = append(unattached, e.Volume)
		case opProcess:
			unprocessed = append(unprocessed, e.Volume)
		}
	}
	if len(unmounted) == 0 {
		return ""
	}
	slices.Sort(unmounted)
	slices.Sort(unattached)
	return unready(unmounted, unattached, unprocessed, why)
}

// used lists the volumes that containers mount, or have as devices.
func used(pod *corev1.Pod) []string {
	var names []string
	for i := range pod.Spec.Volumes {
		name := pod.Spec.Volumes[i].Name
		if isUsed(pod, name) {
			names = append(names, name)
		}
	}
	return names
}

// located lists the errors in err that name a volume.
func located(err error) []*Error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // what is joined is taken apart
		var list []*Error
		for _, err := range joined.Unwrap() {
			list = append(list, located(err)...)
		}
		return list
	}
	var e *Error
	if errors.As(err, &e) {
		return []*Error{e}
	}
	if err = errors.Unwrap(err); err != nil {
		return located(err)
	}
	return nil
}
