package provider

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/endpoints"
)

var stamp = regexp.MustCompile(`"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"`)

// stepClock does to an agent that comes what a step of the clock between two agents does: all
// that was written down before has another distance from now.
func (w *world) stepClock(back time.Duration) {
	w.t.Helper()
	err := filepath.WalkDir(w.layout.Run, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".json") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		moved := stamp.ReplaceAllFunc(data, func(text []byte) []byte {
			at, err := time.Parse(time.RFC3339Nano, string(text[1:len(text)-1]))
			if err != nil {
				return text
			}
			return []byte(`"` + at.Add(back).Format(time.RFC3339Nano) + `"`)
		})
		return os.WriteFile(path, moved, 0o600)
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// TestClockIsSet restarts the agent across a step of the clock, in the middle of a crash loop, of
// a kill and of a hold: nothing waits longer than it would have, nothing that runs is restarted.
func TestClockIsSet(t *testing.T) {
	for name, back := range map[string]time.Duration{"back": 24 * time.Hour, "forward": -24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				w.t = t
				w.deaf["deaf"] = true
				w.behave = func(u *fakeUnit) {
					if u.Identity.Container == "crashes" {
						w.end(u, 1, 0)
					}
				}
				a := w.boot("")
				named := func(container string) func(*corev1.Pod) {
					return func(p *corev1.Pod) { p.Spec.Containers[0].Name = container }
				}
				for _, container := range []string{"steady", "crashes", "deaf", "held"} {
					w.create(container, named(container))
				}
				crashes := func(n int) func() bool {
					return func() bool {
						return len(slices.DeleteFunc(w.started(), func(s string) bool { return !strings.HasPrefix(s, "crashes/") })) >= n
					}
				}
				w.until("a crash loop", crashes(4)) // 40 s until the next
				w.until("all run", func() bool { return w.runs("steady") && w.runs("deaf") && w.runs("held") })
				w.offer(a, "uid-held", endpoints.Endpoint{Slice: "web-1", Ready: true})
				w.delete("held", 60)
				w.delete("deaf", 60)
				synctest.Wait()
				time.Sleep(time.Second)
				synctest.Wait()
				a.stop()
				w.stepClock(back)
				begun := time.Now()
				w.boot("")
				w.until("the crash loop goes on", crashes(5))
				if took := time.Since(begun); took > time.Minute {
					t.Errorf("the back-off took %s", took)
				}
				for _, name := range []string{"deaf", "held"} {
					w.until(name+" is gone", func() bool { _, there := w.get(name); return !there })
					if took := time.Since(begun); took > 2*time.Minute {
						t.Errorf("%s took %s to end", name, took)
					}
				}
				if got := w.started(); slices.Contains(got, "steady/1") || !w.runs("steady") {
					t.Errorf("started %v", got)
				}
			})
		})
	}
}
