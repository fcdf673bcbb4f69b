package node

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestChanges(t *testing.T) {
	conditions := func(ready, memory corev1.ConditionStatus) []corev1.NodeCondition {
		return []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: ready}, {Type: corev1.NodeMemoryPressure, Status: memory}, {Type: "PeerRoutesReady", Status: ready},
		}
	}
	for name, tc := range map[string]struct {
		before, after []corev1.NodeCondition
		want          []string
	}{
		"new node":       {nil, conditions("True", "False"), []string{"NodeReady", "NodeHasSufficientMemory"}},
		"nothing":        {conditions("True", "False"), conditions("True", "False"), nil},
		"not ready":      {conditions("True", "False"), conditions("False", "False"), []string{"NodeNotReady"}},
		"back":           {conditions("Unknown", "Unknown"), conditions("True", "False"), []string{"NodeReady", "NodeHasSufficientMemory"}},
		"out of memory":  {conditions("True", "False"), conditions("True", "True"), []string{"NodeHasInsufficientMemory"}},
		"never heard of": {conditions("Unknown", "False"), conditions("False", "False"), []string{"NodeNotReady"}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := changes(tc.before, tc.after); !slices.Equal(got, tc.want) {
				t.Errorf("changes = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestReboot(t *testing.T) {
	for _, tc := range []struct {
		before, now string
		want        int
	}{{"", "a", 0}, {"a", "a", 0}, {"a", "b", 1}} {
		told := 0
		n := &Node{o: Options{Event: func(kind, reason, _ string) {
			if kind == corev1.EventTypeWarning && reason == "Rebooted" {
				told++
			}
		}}}
		if n.tellReboot(tc.before, tc.now); told != tc.want {
			t.Errorf("%q to %q: told %d times, want %d", tc.before, tc.now, told, tc.want)
		}
	}
}

// TestSchedulable: a node that comes up uncordoned says nothing, each change is told once.
func TestSchedulable(t *testing.T) {
	var told []string
	n := &Node{o: Options{Name: "metal-1", Event: func(_, _, message string) { told = append(told, message) }}}
	for _, is := range []bool{true, true, false, false, true} {
		n.Schedulable(is)
	}
	want := []string{"Node metal-1 status is now: NodeNotSchedulable", "Node metal-1 status is now: NodeSchedulable"}
	if !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}

// TestCgroupV1: the old kind of cgroups is told of at each start, the new one is not.
func TestCgroupV1(t *testing.T) {
	for _, old := range []bool{false, true} {
		told := false
		n := &Node{o: Options{CgroupV1: old, Event: func(kind, reason, _ string) {
			told = told || kind == corev1.EventTypeWarning && reason == "CgroupV1"
		}}}
		if n.tellStart(); told != old {
			t.Errorf("cgroup v1 %v: told %v", old, told)
		}
	}
}
