package conformance

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// ended is a run that began at a time and has results.
func ended(t *testing.T, dir string, at time.Time, selection Selection, results map[string]Result) *Run {
	t.Helper()
	plan := Plan{Selection: selection, Begun: at, Version: "v1"}
	for name := range results {
		plan.Tests = append(plan.Tests, name)
	}
	run, err := Begin(dir, plan)
	if err != nil {
		t.Fatal(err)
	}
	for name, result := range results {
		if result.Name = name; result.State != Missing {
			err = errors.Join(err, run.record(result))
		}
	}
	if _, finish := run.Finish(); errors.Join(err, finish) != nil {
		t.Fatal(err, finish)
	}
	return run
}

func TestReportTakesTheYoungestResult(t *testing.T) {
	t.Parallel()
	all, err := Conformance()
	if err != nil {
		t.Fatal(err)
	}
	dir, day := t.TempDir(), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ended(t, dir, day, Selection{}, map[string]Result{all[0]: {State: Passed}, all[1]: {State: Failed}, all[2]: {State: Passed}})
	ended(t, dir, day.Add(time.Hour), Selection{}, map[string]Result{
		all[0]: {State: Passed}, all[1]: {State: Failed, Message: "no answer\nmore"}, all[2]: {State: Failed},
	})
	ended(t, dir, day.Add(2*time.Hour), Selection{Focus: "a|b"}, map[string]Result{all[0]: {State: Missing}, all[2]: {State: Passed}})
	runs, err := SinceFull(dir)
	if err != nil || len(runs) != 2 {
		t.Fatalf("%d runs, %v", len(runs), err)
	}
	mutation := ended(t, filepath.Join(dir, "m"), day, Selection{}, map[string]Result{Mutations[0].Tests[0]: {State: Failed, Message: "found"}})
	file := filepath.Join(dir, "report.md")
	if err := WriteReport(file, runs, map[string]*Run{Mutations[0].Name: mutation}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"**Of 441 conformance tests: 2 passed, 1 failed, 0 skipped, 438 not run.**", "- " + all[1] + ": no answer\n", "`a\\|b`",
		"- no fault: not run", "- " + Mutations[0].Tests[0] + ": **failed** found", "**missing**",
	} {
		if !strings.Contains(string(data), want) {
			t.Errorf("%q is not in\n%s", want, data)
		}
	}
}

func TestSinceFullWantsAFullRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ended(t, dir, time.Now().UTC(), Selection{Short: true}, map[string]Result{"[sig-a] one": {State: Passed}})
	if _, err := SinceFull(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
