package conformance

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func begin(t *testing.T, dir string, tests ...string) *Run {
	t.Helper()
	run, err := Begin(dir, Plan{Selection: Selection{Focus: "x"}, Tests: tests, Begun: time.Now().UTC()})
	if err != nil {
		t.Fatal(err)
	}
	return run
}

func TestRunIsResumedUntilItIsFinished(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	run := begin(t, dir, "[sig-a] one", "[sig-a] two")
	if err := run.record(Result{Name: "[sig-a] one", State: Passed}); err != nil {
		t.Fatal(err)
	}
	// The host dies while a line is written.
	f, err := os.OpenFile(filepath.Join(run.Dir, resultsFile), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(`{"name":"[sig-a] tw`)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	resumed := begin(t, dir, "[sig-a] one", "[sig-a] two")
	if resumed.Dir != run.Dir || len(resumed.Remaining()) != 1 || resumed.Remaining()[0] != "[sig-a] two" {
		t.Errorf("resumed %s with %q to run, not %s", resumed.Dir, resumed.Remaining(), run.Dir)
	}
	if other := begin(t, filepath.Join(dir, "other"), "[sig-a] one"); len(other.Remaining()) != 1 {
		t.Error("another run has results of this one")
	}
	if _, err := resumed.Finish(); err != nil {
		t.Fatal(err)
	}
	last, err := Last(dir)
	if err != nil || !last.finished() {
		t.Errorf("the last run is not the finished one: %v", err)
	}
}

func TestCheckCountsStrictly(t *testing.T) {
	t.Parallel()
	run := begin(t, t.TempDir(), "[sig-a] one [Conformance]", "[sig-a] two")
	if err := run.Check(); err == nil || !strings.Contains(err.Error(), "did not run: [sig-a] two") {
		t.Errorf("tests without result: %v", err)
	}
	results := func(first, second State) error {
		return errors.Join(run.record(Result{Name: run.Plan.Tests[0], State: first}), run.record(Result{Name: run.Plan.Tests[1], State: second}))
	}
	if err := errors.Join(results(Failed, Skipped), run.Check()); err != nil {
		t.Errorf("an ordinary test may skip itself: %v", err)
	}
	if err := errors.Join(results(Skipped, Passed), run.Check()); err == nil {
		t.Error("a conformance test may skip itself")
	}
	run.Plan.Selection = Selection{}
	if err := errors.Join(results(Passed, Passed), run.Check()); err == nil || !strings.Contains(err.Error(), "not 441") {
		t.Errorf("a full run of two tests: %v", err)
	}
}

func TestSummaryAndJUnit(t *testing.T) {
	t.Parallel()
	run := begin(t, t.TempDir(), "[sig-a] one", "[sig-b] two", "[sig-b] three")
	run.Plan.Skips = Skips{"[sig-c] four": "needs a cloud"}
	if err := errors.Join(run.record(Result{Name: "[sig-a] one", State: Passed}),
		run.record(Result{Name: "[sig-b] two", State: Failed, Message: "no <\x01> answer\nsecond"})); err != nil {
		t.Fatal(err)
	}
	summary, err := run.Finish()
	if err != nil || summary.String() != "1 passed, 2 failed, 1 skipped" {
		t.Errorf("got %s, %v", summary, err)
	}
	data, err := os.ReadFile(filepath.Join(run.Dir, "junit.xml"))
	if err != nil {
		t.Fatal(err)
	}
	var suite junitSuite
	if err := xml.Unmarshal(data, &suite); err != nil || suite.Tests != 4 || suite.Failures != 2 || suite.Skipped != 1 {
		t.Errorf("got %+v, %v", suite, err)
	}
}

func TestFirstLineSaysWhatWasWaitedFor(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]string{
		"\nno answer\nsecond": "no answer",
		"Timed out after 60.001s.\nExpected\n    <bool>: false\nto be true": "Timed out after 60.001s. Expected <bool>: false to be true",
		"Failed after 1.0s.":     "Failed after 1.0s.",
		strings.Repeat("x", 301): strings.Repeat("x", 300) + "…",
	} {
		if got := firstLine(message); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// fakeGinkgo is a ginkgo that runs the shell script with $report as its report's path.
func fakeGinkgo(t *testing.T, script string) Programs {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ginkgo")
	text := "#!/bin/bash\nfor a; do case $a in --json-report=*) r=${a#*=};; --output-dir=*) d=${a#*=};; esac; done; report=$d/$r\n" + script
	if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return Programs{Ginkgo: file, E2E: "/e2e.test", Kubectl: "/kubectl"}
}

func specJSON(name, state, message string) string {
	return fmt.Sprintf(`{"LeafNodeType":"It","LeafNodeText":%q,"State":%q,"Failure":{"Message":%q},"CapturedGinkgoWriterOutput":"said"}`, name, state, message)
}

func TestExecute(t *testing.T) { // not parallel: a fork keeps a script busy that another test writes
	names := []string{"[sig-a] one", "[sig-a] two", "[sig-a] three"}
	report := "cat >$report <<'E'\n[{\"SpecReports\":[" + strings.Join([]string{
		specJSON(names[0], "passed", ""), specJSON(names[1], "failed", "why"), specJSON(names[2], "skipped", "only here"), specJSON("[sig-a] other", "skipped", ""),
	}, ",") + "]}]\nE\nexit 1\n"
	for _, test := range []struct {
		name, script string
		want         Tally
		fails        bool
	}{
		{"everything ends", "printf -- '" + delimiter + "\\n• [1.0 seconds]\\n[sig-a] one\\n'\n" + report, Tally{Passed: 1, Failed: 1, Skipped: 1}, false},
		{"no report", "printf -- '" + delimiter + "\\n• [1.0 seconds]\\n[sig-a] one\\n'; exit 2", Tally{Passed: 1, Missing: 2}, true},
		{"ginkgo breaks down", "echo '[]' >$report; exit 2", Tally{Missing: 3}, true},
		{"output and report disagree", "printf -- '" + delimiter + "\\n• [1.0 seconds]\\n[sig-a] two\\n'\n" + report, Tally{Passed: 2, Missing: 1}, true},
	} {
		run := begin(t, t.TempDir(), names...)
		var shown int
		err := run.Execute(context.Background(), fakeGinkgo(t, test.script), 2, func(Result) { shown++ })
		if got := run.Summarize().Tally; got != test.want || (err != nil) != test.fails {
			t.Errorf("%s: got %+v, %v, want %+v", test.name, got, err, test.want)
		}
		if want := len(run.Results); shown != want {
			t.Errorf("%s: %d results were shown, not %d", test.name, shown, want)
		}
	}
}

func TestExecuteStopsWhenInterrupted(t *testing.T) {
	run := begin(t, t.TempDir(), "[sig-a] one")
	ctx, cancel := context.WithCancel(context.Background())
	ready := filepath.Join(t.TempDir(), "ready")
	go func() {
		for !t.Failed() {
			if _, err := os.Stat(ready); err == nil {
				cancel()
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	script := "trap 'echo [] >$report; exit 1' TERM; touch " + ready + "; while :; do sleep 0.01; done"
	if err := run.Execute(ctx, fakeGinkgo(t, script), 1, func(Result) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if len(run.Remaining()) != 1 {
		t.Error("an interrupted test has a result")
	}
}
