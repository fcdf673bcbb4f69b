package pressure

import (
	"cmp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// State is what has to be remembered from one look to the next. The zero value remembers
// nothing.
type State struct {
	// since is when a threshold that is met now was first seen so.
	since map[Threshold]time.Time
	// last is when a condition was last brought about.
	last map[corev1.NodeConditionType]time.Time
	// unresolved thresholds were met, their grace over: they stay until enough is reclaimed.
	unresolved []Threshold
}

// Verdict is what holds now.
type Verdict struct {
	// Conditions of the node that hold, sorted.
	Conditions []corev1.NodeConditionType
	// Starved are the thresholds for which something has to be done, the most urgent first.
	Starved []Threshold
}

// Has says whether a condition holds.
func (v Verdict) Has(c corev1.NodeConditionType) bool { return slices.Contains(v.Conditions, c) }

// Next judges what was observed.
func Next(s Settings, before State, seen Observations, now time.Time) (State, Verdict) {
	met := Met(s.Thresholds, seen, false)
	for _, t := range Met(before.unresolved, seen, true) {
		if !slices.Contains(met, t) {
			met = append(met, t)
		}
	}
	after := State{since: map[Threshold]time.Time{}, last: map[corev1.NodeConditionType]time.Time{}}
	for c, at := range before.last {
		if now.Sub(at) < s.TransitionPeriod {
			after.last[c] = at
		}
	}
	var v Verdict
	for _, t := range met {
		after.since[t] = now
		if at, known := before.since[t]; known {
			after.since[t] = at
		}
		after.last[t.Signal.Condition()] = now
		if now.Sub(after.since[t]) >= t.Grace {
			v.Starved = append(v.Starved, t)
		}
	}
	after.unresolved = slices.Clone(v.Starved)
	slices.SortStableFunc(v.Starved, func(a, b Threshold) int { return cmp.Compare(urgency(a), urgency(b)) })
	for c := range after.last {
		v.Conditions = append(v.Conditions, c)
	}
	slices.Sort(v.Conditions)
	return after, v
}

// urgency has memory before all else: the kernel does not wait.
func urgency(t Threshold) int {
	if t.Signal.Resource() == corev1.ResourceMemory {
		return 0
	}
	return 1
}

// Met are the thresholds of which less is left than may be; with reclaim, than has to be left
// before the shortage is over. What could not be observed is not short.
func Met(thresholds []Threshold, seen Observations, reclaim bool) []Threshold {
	var met []Threshold
	for _, t := range thresholds {
		if o, known := seen[t.Signal]; known && t.met(o, reclaim) {
			met = append(met, t)
		}
	}
	return met
}
