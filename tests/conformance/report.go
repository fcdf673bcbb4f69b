package conformance

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// WriteReport writes the document that says what runs showed. Of a test that several
// runs have a result of, the youngest counts. Tests of conformance that no run
// had in its plan are counted as not run. Mutations are the last runs of faulty agents, by
// the fault's name.
func WriteReport(file string, runs []*Run, mutations map[string]*Run) error {
	if len(runs) == 0 {
		return errors.New("write the report: no run is given")
	}
	all, err := Conformance()
	if err != nil {
		return err
	}
	slices.SortFunc(runs, func(a, b *Run) int { return a.Plan.Begun.Compare(b.Plan.Begun) })
	merged := merge(runs)
	var text strings.Builder
	text.WriteString("# Conformance\n\nWritten by `make conformance-report` from results of upstream's end-to-end suite (Kubernetes 1.35.4) on\n" +
		"vk-metal machines of the test rig. Do not edit. [conformance-images.md](conformance-images.md) says what the tests' images are made from, [conformance-node.md](conformance-node.md) how other node tests ended.\n\n" +
		"`make conformance` boots a control plane and two machines and runs all tests; interrupted, it goes on where it was.\n" +
		"FOCUS and SKIP choose among all upstream tests by expression, KEEP=1 leaves the cluster for the next run. CI runs the\n" +
		"short list, `make conformance-short` (tests/conformance/short.txt).\n\n")
	writeRuns(&text, runs)
	summary, notRun := tally(all, merged)
	writeTable(&text, summary, notRun)
	writeTests(&text, "Failed", summary.Failures)
	writeTests(&text, "Skipped", summary.Skips)
	if len(notRun) > 0 && len(notRun) < len(all) {
		fmt.Fprintf(&text, "\n## Not run (%d)\n\n", len(notRun))
		for _, name := range notRun {
			fmt.Fprintf(&text, "- %s\n", name)
		}
	}
	writeOthers(&text, all, merged)
	writeMutations(&text, mutations)
	if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// merge takes the youngest result of each test: a run that was interrupted before a test
// takes nothing back.
func merge(runs []*Run) map[string]Result {
	merged := map[string]Result{}
	for _, run := range runs {
		for _, name := range run.Plan.Tests {
			result := run.outcome(name)
			if _, known := merged[name]; !known || result.State != Missing {
				merged[name] = result
			}
		}
		for name, reason := range run.Plan.Skips {
			merged[name] = Result{Name: name, State: Skipped, Message: "skip file: " + reason}
		}
	}
	return merged
}

func tally(names []string, results map[string]Result) (summary Summary, notRun []string) {
	summary = Summary{SIGs: map[string]Tally{}}
	for _, name := range names {
		result, planned := results[name]
		if !planned || result.State == Missing {
			notRun = append(notRun, name)
			continue
		}
		summary.add(result)
	}
	return summary, notRun
}

func writeRuns(text *strings.Builder, runs []*Run) {
	text.WriteString("| run (UTC) | node version | chosen | tests | result | nodes | services by |\n|---|---|---|---|---|---|---|\n")
	for _, run := range runs {
		fmt.Fprintf(text, "| %s | %s | %s | %d | %s | %d | %s |\n", run.Plan.Begun.Format("2006-01-02 15:04"), run.Plan.Version, run.Plan.Selection,
			len(run.Plan.Tests)+len(run.Plan.Skips), run.Summarize().Tally, run.Plan.Nodes, run.Plan.ServiceProxy)
	}
}

func writeTable(text *strings.Builder, summary Summary, notRun []string) {
	missing := map[string]int{}
	for _, name := range notRun {
		missing[SIG(name)]++
		if _, there := summary.SIGs[SIG(name)]; !there {
			summary.SIGs[SIG(name)] = Tally{}
		}
	}
	fmt.Fprintf(text, "\n**Of %d conformance tests: %d passed, %d failed, %d skipped, %d not run.**\n\n",
		Total, summary.Passed, summary.Failed, summary.Skipped, len(notRun))
	text.WriteString("| SIG | passed | failed | skipped | not run |\n|---|---:|---:|---:|---:|\n")
	for _, sig := range sigs(summary) {
		t := summary.SIGs[sig]
		fmt.Fprintf(text, "| %s | %d | %d | %d | %d |\n", sig, t.Passed, t.Failed, t.Skipped, missing[sig])
	}
}

func writeTests(text *strings.Builder, title string, results []Result) {
	if len(results) == 0 {
		return
	}
	fmt.Fprintf(text, "\n## %s (%d)\n\n", title, len(results))
	for _, result := range results {
		fmt.Fprintf(text, "- %s: %s\n", result.Name, firstLine(result.Message))
	}
}

// writeOthers lists results of tests that are no part of conformance.
func writeOthers(text *strings.Builder, conformance []string, results map[string]Result) {
	summary := Summary{SIGs: map[string]Tally{}}
	for name, result := range results {
		if _, found := slices.BinarySearch(conformance, name); !found {
			summary.add(result)
		}
	}
	if summary.Tally == (Tally{}) {
		return
	}
	fmt.Fprintf(text, "\n## Other upstream tests\n\n%s\n", summary.Tally)
	slices.SortFunc(summary.Failures, byName)
	slices.SortFunc(summary.Skips, byName)
	for _, result := range append(summary.Failures, summary.Skips...) {
		fmt.Fprintf(text, "- %s: %s: %s\n", result.State, result.Name, firstLine(result.Message))
	}
}

func byName(a, b Result) int { return strings.Compare(a.Name, b.Name) }

// writeMutations says which tests find which fault.
func writeMutations(text *strings.Builder, runs map[string]*Run) {
	text.WriteString("\n## Faults that the suite finds\n\n`make conformance-mutations` runs these tests against agents that err on purpose. Each must " +
		"fail; without a fault\neach must pass. No conformance test minds a missing TERM: an upstream test outside of conformance does.\n")
	fmt.Fprintf(text, "\n- no fault: %s\n", endOf(runs[NoMutation]))
	for _, mutation := range Mutations {
		run := runs[mutation.Name]
		fmt.Fprintf(text, "- %s, `%s`: %s\n", mutation.Fault, mutation.Name, endOf(run))
		for _, name := range mutation.Tests {
			result := Result{State: Missing}
			if run != nil {
				result = run.outcome(name)
			}
			fmt.Fprintf(text, "  - %s: **%s** %s\n", name, result.State, firstLine(result.Message))
		}
	}
}

func endOf(run *Run) string {
	if run == nil {
		return "not run"
	}
	return fmt.Sprintf("%s (%s, %s)", run.Summarize().Tally, run.Plan.Begun.Format("2006-01-02 15:04"), run.Plan.Version)
}
