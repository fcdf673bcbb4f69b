package conformance

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
)

// Tally counts tests by how they ended.
type Tally struct{ Passed, Failed, Skipped, Missing int }

func (t *Tally) add(state State) {
	switch state {
	case Passed:
		t.Passed++
	case Failed:
		t.Failed++
	case Skipped:
		t.Skipped++
	default:
		t.Missing++
	}
}

// String is the line that a run ends with; a test without a result is a failure.
func (t Tally) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", t.Passed, t.Failed+t.Missing, t.Skipped)
}

// Summary is the result of a run.
type Summary struct {
	Tally
	SIGs map[string]Tally
	// Failures and Skips in the order of the names; Missing ones are failures.
	Failures []Result
	Skips    []Result
}

// Summarize counts. Tests of the skip file are skipped.
func (r *Run) Summarize() Summary {
	s := Summary{SIGs: map[string]Tally{}}
	for _, name := range r.Plan.Tests {
		s.add(r.outcome(name))
	}
	for _, name := range slices.Sorted(maps.Keys(r.Plan.Skips)) {
		s.add(Result{Name: name, State: Skipped, Message: r.Plan.Skips[name]})
	}
	return s
}

func (s *Summary) add(result Result) {
	s.Tally.add(result.State)
	sig := s.SIGs[SIG(result.Name)]
	sig.add(result.State)
	s.SIGs[SIG(result.Name)] = sig
	switch result.State {
	case Failed, Missing:
		s.Failures = append(s.Failures, result)
	case Skipped:
		s.Skips = append(s.Skips, result)
	}
}

// Table is one line per SIG.
func (s Summary) Table() string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "SIG\tpassed\tfailed\tskipped\t")
	for _, sig := range sigs(s) {
		t := s.SIGs[sig]
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t\n", sig, t.Passed, t.Failed+t.Missing, t.Skipped)
	}
	_ = w.Flush() // into memory
	return text.String()
}

func sigs(s Summary) []string { return slices.Sorted(maps.Keys(s.SIGs)) }

// Check is the count check: every planned test has run to an end. Of tests outside of
// conformance one may decide that it cannot run here; a conformance test may not.
func (r *Run) Check() error {
	var errs []error
	executed := 0
	for _, name := range r.Plan.Tests {
		result := r.outcome(name)
		switch {
		case result.State == Missing:
			errs = append(errs, fmt.Errorf("did not run: %s", name))
		case result.State == Skipped && strings.Contains(name, Tag):
			errs = append(errs, fmt.Errorf("skipped itself: %s: %s", name, result.Message))
		default:
			executed++
		}
	}
	if r.Plan.Selection.Full() && executed != Total-len(r.Plan.Skips) {
		errs = append(errs, fmt.Errorf("%d tests were executed, not %d (%d less %d in the skip file)",
			executed, Total-len(r.Plan.Skips), Total, len(r.Plan.Skips)))
	}
	return errors.Join(errs...)
}

// Finish writes the reports into the run's directory: a later run with the same plan
// begins anew.
func (r *Run) Finish() (Summary, error) {
	summary := r.Summarize()
	if err := r.writeJUnit(); err != nil {
		return summary, err
	}
	var text strings.Builder
	text.WriteString(summary.Table())
	for _, failure := range summary.Failures {
		fmt.Fprintf(&text, "%s: %s: %s\n", failure.State, failure.Name, firstLine(failure.Message))
	}
	fmt.Fprintln(&text, summary.Tally)
	if err := os.WriteFile(filepath.Join(r.Dir, doneFile), []byte(text.String()), 0o644); err != nil {
		return summary, fmt.Errorf("write the summary: %w", err)
	}
	return summary, nil
}

// waited is the line with which an assertion says how long it waited, and not for what.
var waited = regexp.MustCompile(`^(Failed|Timed out) after [0-9.]+s\.$`)

// firstLine is as much of a message as a list shows.
func firstLine(message string) string {
	const longest = 300
	line, rest, _ := strings.Cut(strings.TrimSpace(message), "\n")
	if waited.MatchString(line) {
		line = strings.TrimSpace(line + " " + strings.Join(strings.Fields(rest), " "))
	}
	if len(line) > longest {
		line = line[:longest] + "…"
	}
	return line
}
