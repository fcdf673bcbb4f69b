package conformance

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Plan is what a run shall do and on what: results of one plan belong together.
type Plan struct {
	Selection Selection `json:"selection"`
	// Package identifies the vk-metal that is judged, Suite the tests.
	Package string `json:"package"`
	Suite   string `json:"suite"`
	// Nodes and ServiceProxy describe the cluster.
	Nodes        int    `json:"nodes"`
	ServiceProxy string `json:"serviceProxy"`
	// Version is the version of vk-metal, for the reader of a report.
	Version string `json:"version,omitempty"`
	// Mutation is the name of the fault that this vk-metal has on purpose.
	Mutation string    `json:"mutation,omitempty"`
	Begun    time.Time `json:"begun"`
	// Tests are to be run; Skips are chosen and not run, with reasons.
	Tests []string `json:"tests"`
	Skips Skips    `json:"skips,omitempty"`
}

// NewPlan chooses tests and takes out those of the skip file.
func NewPlan(selection Selection, available, conformance []string, skips Skips) (Plan, error) {
	chosen, err := selection.Choose(available, conformance)
	if err != nil {
		return Plan{}, err
	}
	plan := Plan{Selection: selection, Begun: time.Now().UTC(), Skips: Skips{}}
	for _, name := range chosen {
		if reason, skip := skips[name]; skip {
			plan.Skips[name] = reason
			continue
		}
		plan.Tests = append(plan.Tests, name)
	}
	if len(plan.Tests) == 0 {
		return Plan{}, errors.New("all chosen tests are in the skip file")
	}
	return plan, nil
}

// same says whether results of the one are results of the other.
func (p Plan) same(other Plan) bool {
	return p.Selection == other.Selection && p.Package == other.Package && p.Mutation == other.Mutation && p.Suite == other.Suite &&
		p.Nodes == other.Nodes && p.ServiceProxy == other.ServiceProxy && slices.Equal(p.Tests, other.Tests)
}

const (
	planFile    = "plan.json"
	resultsFile = "results.jsonl"
	doneFile    = "summary.txt"
)

// Run is a directory with a plan, the results so far and what belongs to them.
type Run struct {
	Dir     string
	Plan    Plan
	Results map[string]Result // by name; of tests that have ended
}

// Begin resumes the last run below dir if it was interrupted and has the same plan, and
// else makes a new one, named after the time.
func Begin(dir string, plan Plan) (*Run, error) {
	if last, err := Last(dir); err == nil && !last.finished() && last.Plan.same(plan) {
		return last, nil
	}
	run := &Run{Dir: filepath.Join(dir, plan.Begun.Format("20060102-150405")), Plan: plan, Results: map[string]Result{}}
	if err := os.MkdirAll(run.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("begin a run: %w", err)
	}
	data, err := json.MarshalIndent(plan, "", " ")
	if err != nil {
		return nil, fmt.Errorf("begin a run: %w", err)
	}
	if err := os.WriteFile(filepath.Join(run.Dir, planFile), data, 0o644); err != nil {
		return nil, fmt.Errorf("begin a run: %w", err)
	}
	return run, nil
}

// Last opens the youngest run below dir; fs.ErrNotExist when there is none.
func Last(dir string) (*Run, error) {
	plans, err := plansBelow(dir)
	if err != nil {
		return nil, err
	}
	return Open(filepath.Dir(slices.Max(plans)))
}

// SinceFull opens the youngest run of all of conformance below dir and those after it.
func SinceFull(dir string) ([]*Run, error) {
	plans, err := plansBelow(dir)
	if err != nil {
		return nil, err
	}
	slices.Sort(plans)
	var runs []*Run
	for _, plan := range slices.Backward(plans) {
		run, err := Open(filepath.Dir(plan))
		if err != nil {
			return nil, err
		}
		runs = append(runs, run)
		if run.Plan.Selection.Full() {
			return runs, nil
		}
	}
	return nil, fmt.Errorf("find a run of all of conformance in %s: %w", dir, fs.ErrNotExist)
}

// plansBelow are the plans of all runs below dir; fs.ErrNotExist when there is none.
func plansBelow(dir string) ([]string, error) {
	plans, err := filepath.Glob(filepath.Join(dir, "*", planFile))
	if err != nil {
		return nil, fmt.Errorf("find runs: %w", err)
	}
	if len(plans) == 0 {
		return nil, fmt.Errorf("find a run in %s: %w", dir, fs.ErrNotExist)
	}
	return plans, nil
}

// Open reads a run's directory.
func Open(dir string) (*Run, error) {
	run := &Run{Dir: dir, Results: map[string]Result{}}
	data, err := os.ReadFile(filepath.Join(dir, planFile))
	if err != nil {
		return nil, fmt.Errorf("open run: %w", err)
	}
	if err := json.Unmarshal(data, &run.Plan); err != nil {
		return nil, fmt.Errorf("open run %s: %w", dir, err)
	}
	return run, run.load()
}

// load reads the results. A last line that is broken is what a crash leaves.
func (r *Run) load() error {
	f, err := os.Open(filepath.Join(r.Dir, resultsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read results: %w", err)
	}
	defer func() { _ = f.Close() }()
	for decoder := json.NewDecoder(f); ; {
		var result Result
		err := decoder.Decode(&result)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read results of %s: %w", r.Dir, err)
		}
		r.Results[result.Name] = result
	}
}

func (r *Run) finished() bool {
	_, err := os.Stat(filepath.Join(r.Dir, doneFile))
	return err == nil
}

// record keeps a result on disk before it is counted.
func (r *Run) record(result Result) error {
	line, err := json.Marshal(result)
	if err != nil {
		return fmt.Errorf("keep a result: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(r.Dir, resultsFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("keep a result: %w", err)
	}
	_, err = f.Write(append(line, '\n'))
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("keep a result: %w", err)
	}
	r.Results[result.Name] = result
	return nil
}

// Remaining are the tests without a result.
func (r *Run) Remaining() []string {
	return filter(r.Plan.Tests, func(name string) bool { _, ended := r.Results[name]; return !ended })
}

// outcome is the result of a planned test: Missing if it has none.
func (r *Run) outcome(name string) Result {
	if result, ended := r.Results[name]; ended {
		return result
	}
	return Result{Name: name, State: Missing, Message: "no result: the run ended before it"}
}

// slug is a file name for a test.
func slug(name string) string {
	const longest = 180
	clean := strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' {
			return c
		}
		return '-'
	}, name)
	for strings.Contains(clean, "--") {
		clean = strings.ReplaceAll(clean, "--", "-")
	}
	clean = strings.Trim(clean, "-.")
	return clean[:min(len(clean), longest)]
}
