package pressure

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Signal is what is left of a resource.
type Signal string

// The kubelet's signals. Writable layers are on the file system of pods (nodefs), so there is
// no containerfs of its own.
const (
	MemoryAvailable   Signal = "memory.available"
	NodeFSAvailable   Signal = "nodefs.available"
	NodeFSInodesFree  Signal = "nodefs.inodesFree"
	ImageFSAvailable  Signal = "imagefs.available"
	ImageFSInodesFree Signal = "imagefs.inodesFree"
	PIDAvailable      Signal = "pid.available"
	// AllocatableMemory is what all pods together may still take of the memory that is not
	// reserved. Its threshold is that of memory.available; it cannot be configured.
	AllocatableMemory Signal = "allocatableMemory.available"
)

// Signals are those that can be configured.
var Signals = []Signal{MemoryAvailable, NodeFSAvailable, NodeFSInodesFree, ImageFSAvailable, ImageFSInodesFree, PIDAvailable}

// Names of starved resources in messages, besides memory and ephemeral-storage.
const (
	resourceInodes corev1.ResourceName = "inodes"
	resourcePids   corev1.ResourceName = "pids"
)

// Resource is what the signal measures, as messages name it.
func (s Signal) Resource() corev1.ResourceName {
	switch s {
	case MemoryAvailable, AllocatableMemory:
		return corev1.ResourceMemory
	case NodeFSInodesFree, ImageFSInodesFree:
		return resourceInodes
	case PIDAvailable:
		return resourcePids
	}
	return corev1.ResourceEphemeralStorage
}

// Condition is what the node says of itself when the signal is low.
func (s Signal) Condition() corev1.NodeConditionType {
	switch s.Resource() {
	case corev1.ResourceMemory:
		return corev1.NodeMemoryPressure
	case resourcePids:
		return corev1.NodePIDPressure
	}
	return corev1.NodeDiskPressure
}

// format is how amounts of the signal are written.
func (s Signal) format() resource.Format {
	if r := s.Resource(); r == resourceInodes || r == resourcePids {
		return resource.DecimalSI
	}
	return resource.BinarySI
}

// Amount is a number of bytes, inodes or processes, or a part of the whole.
type Amount struct {
	Number int64
	// Percent counts where Number is 0.
	Percent float64
}

// Of is the amount where there are capacity in all.
func (a Amount) Of(capacity int64) int64 {
	if a.Number != 0 {
		return a.Number
	}
	return int64(float64(capacity) * a.Percent / 100)
}

// String is how the amount is configured.
func (a Amount) String() string {
	if a.Number != 0 {
		return resource.NewQuantity(a.Number, resource.BinarySI).String()
	}
	return strconv.FormatFloat(a.Percent, 'f', -1, 64) + "%"
}

// ParseAmount reads "100Mi", "5000" or "10%".
func ParseAmount(text string) (Amount, error) {
	if part, ok := strings.CutSuffix(text, "%"); ok {
		percent, err := strconv.ParseFloat(part, 32)
		if err != nil || !(percent >= 0 && percent <= 100) {
			return Amount{}, fmt.Errorf("%q is not a percentage from 0%% to 100%%", text)
		}
		return Amount{Percent: percent}, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() <= 0 {
		return Amount{}, fmt.Errorf("%q is not an amount such as 100Mi or 10%%", text)
	}
	return Amount{Number: q.Value()}, nil
}

// Threshold is how little may be left of a resource.
type Threshold struct {
	Signal Signal
	Value  Amount
	// Grace is how long less may be left before pods go; 0 makes the threshold a hard one.
	Grace time.Duration
	// MinReclaim is how much more than Value has to be left until the shortage is over.
	MinReclaim Amount
}

// Hard says whether pods go at once, without their grace period.
func (t Threshold) Hard() bool { return t.Grace == 0 }

// met says whether less is left than may be; with reclaim, than there has to be before the
// shortage is over.
func (t Threshold) met(o Observation, reclaim bool) bool {
	least := t.Value.Of(o.Capacity)
	if reclaim {
		least += t.MinReclaim.Of(o.Capacity)
	}
	return o.Available < least
}

// Observation is what is left of a resource, and how much there is in all.
type Observation struct{ Available, Capacity int64 }

// Observations are those that could be made.
type Observations map[Signal]Observation

// Settings are a kubelet's settings of eviction.
type Settings struct {
	Thresholds []Threshold
	// TransitionPeriod is how long a node's condition stays after the shortage.
	TransitionPeriod time.Duration
	// MaxPodGrace bounds the grace period of pods that go for a soft threshold.
	MaxPodGrace time.Duration
}

// DefaultHard is a kubelet's evictionHard on Linux.
func DefaultHard() map[Signal]Amount {
	return map[Signal]Amount{
		MemoryAvailable: {Number: 100 << 20}, NodeFSAvailable: {Percent: 10}, NodeFSInodesFree: {Percent: 5},
		ImageFSAvailable: {Percent: 15}, ImageFSInodesFree: {Percent: 5},
	}
}

// Thresholds makes the list of thresholds, in the order of Signals, the hard ones first. As by
// a kubelet 0% and 100% turn a threshold off, and memory that is reserved has the threshold of
// memory.available too.
func Thresholds(hard, soft, reclaim map[Signal]Amount, grace map[Signal]time.Duration) []Threshold {
	var list []Threshold
	add := func(values map[Signal]Amount, grace map[Signal]time.Duration) {
		for _, s := range Signals {
			if v, ok := values[s]; ok && v != (Amount{}) && v != (Amount{Percent: 100}) {
				list = append(list, Threshold{s, v, grace[s], reclaim[s]})
			}
		}
	}
	add(hard, nil)
	add(soft, grace)
	if i := slices.IndexFunc(list, func(t Threshold) bool { return t.Signal == MemoryAvailable && t.Hard() }); i >= 0 {
		copied := list[i]
		copied.Signal = AllocatableMemory
		list = append(list, copied)
	}
	return list
}

// Reserve is what the hard thresholds keep back of the capacity of memory and of the file
// system of pods; it is no part of what pods can be given.
func Reserve(thresholds []Threshold, capacity corev1.ResourceList) corev1.ResourceList {
	list := corev1.ResourceList{}
	for _, t := range thresholds {
		name := t.Signal.Resource()
		if t.Hard() && (t.Signal == MemoryAvailable || t.Signal == NodeFSAvailable) {
			list[name] = *resource.NewQuantity(t.Value.Of(capacity.Name(name, resource.BinarySI).Value()), resource.BinarySI)
		}
	}
	return list
}
