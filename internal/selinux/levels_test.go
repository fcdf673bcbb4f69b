//go:build linux

package selinux

import (
	"fmt"
	"path/filepath"
	"regexp"
	"testing"

	"pgregory.net/rapid"
)

// small has so few pairs that they collide all the time.
func small(t *rapid.T, dir string) *Levels {
	l := NewLevels(dir)
	l.pick = func() (int, int) {
		return rapid.IntRange(0, 5).Draw(t, "a"), rapid.IntRange(0, 5).Draw(t, "b")
	}
	return l
}

// TestLevels: no two pods have the same level at a time, a pod keeps its own, and an agent that is
// started again knows all of them.
func TestLevels(t *testing.T) {
	shape := regexp.MustCompile(`^s0:c(\d+),c(\d+)$`)
	dirs, n := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		dir := filepath.Join(dirs, fmt.Sprint(n))
		levels, model := small(t, dir), map[string]string{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			pod := fmt.Sprint("pod-", rapid.IntRange(0, 7).Draw(t, "pod"))
			switch rapid.SampledFrom([]string{"take", "take", "give back", "restart"}).Draw(t, "step") {
			case "take":
				level, err := levels.Of(pod)
				if err != nil || !shape.MatchString(level) {
					t.Fatalf("level %q, %v", level, err)
				}
				if had, has := model[pod]; has && had != level {
					t.Fatalf("%s had %s, and has %s", pod, had, level)
				}
				model[pod] = level
			case "give back":
				if err := levels.Release(pod); err != nil {
					t.Fatal(err)
				}
				delete(model, pod)
			case "restart":
				levels = small(t, dir)
			}
			holders := map[string]string{}
			for pod, level := range model {
				if other, taken := holders[level]; taken {
					t.Fatalf("%s and %s have %s", pod, other, level)
				}
				holders[level] = pod
			}
		}
	})
}

func TestLevelsOfNoPod(t *testing.T) {
	levels := NewLevels(t.TempDir())
	for _, uid := range []string{"", ".", "..", ".new", "a/b", "../x"} {
		if level, err := levels.Of(uid); err == nil {
			t.Errorf("UID %q has %s", uid, level)
		}
	}
	if err := levels.Release("never there"); err != nil {
		t.Error(err)
	}
}
