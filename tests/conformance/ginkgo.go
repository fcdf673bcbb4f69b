package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/onsi/ginkgo/v2/types"
)

// suiteName begins the text that Ginkgo matches a focus with.
const suiteName = "Kubernetes e2e suite"

const (
	// interruptGrace is for tests that clean up after an interrupt.
	interruptGrace = 3 * time.Minute
	// longestRun is when Ginkgo gives up; a test has its own time limits.
	longestRun = "24h"
	// longestArgument stays below what the kernel takes as one argument (128 KiB).
	longestArgument = 100 << 10
)

// Programs are what a run needs; paths.
type Programs struct{ Ginkgo, E2E, Kubectl, Kubeconfig string }

// Execute runs the tests that have no result yet, parallel at a time, and records
// results as they come. progress is told of each. An interrupted ctx stops the tests,
// which clean up first; what has ended is kept. That tests fail is no error.
func (r *Run) Execute(ctx context.Context, programs Programs, parallel int, progress func(Result)) error {
	remaining := r.Remaining()
	if len(remaining) == 0 {
		return nil
	}
	report, err := r.reportName()
	if err != nil {
		return err
	}
	output, err := os.OpenFile(filepath.Join(r.Dir, "ginkgo.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("keep the output of the tests: %w", err)
	}
	defer func() { _ = output.Close() }()
	cmd := r.command(ctx, programs, remaining, parallel, report)
	ended, err := r.follow(cmd, output, remaining, progress)
	if err != nil {
		return err
	}
	if err := r.takeReport(filepath.Join(r.Dir, report), progress); err != nil {
		return errors.Join(err, ended, ctx.Err())
	}
	var exit *exec.ExitError
	if errors.As(ended, &exit) && exit.ExitCode() == 1 && ctx.Err() == nil {
		ended = nil // tests failed
	}
	if ended != nil {
		return fmt.Errorf("run ginkgo: %w (its output is in %s)", errors.Join(ctx.Err(), ended), output.Name())
	}
	return nil
}

// reportName is a file for this invocation's report: a resumed run has several.
func (r *Run) reportName() (string, error) {
	found, err := filepath.Glob(filepath.Join(r.Dir, "ginkgo-*.json"))
	if err != nil {
		return "", fmt.Errorf("list reports: %w", err)
	}
	return fmt.Sprintf("ginkgo-%d.json", len(found)+1), nil
}

func (r *Run) command(ctx context.Context, programs Programs, tests []string, parallel int, report string) *exec.Cmd {
	args := []string{
		"run", "--procs=" + strconv.Itoa(max(parallel, 1)), "-v", "--no-color", "--silence-skips", "--keep-going",
		"--timeout=" + longestRun, "--output-dir=" + r.Dir, "--json-report=" + report,
	}
	for _, focus := range focuses(tests) {
		args = append(args, "--focus="+focus)
	}
	args = append(args, programs.E2E, "--",
		"--kubeconfig="+programs.Kubeconfig, "--kubectl-path="+programs.Kubectl,
		"--provider=local", "--dns-domain=cluster.local", "--node-os-distro=debian",
		"--disable-log-dump=true", "--dump-logs-on-failure=true", "--report-dir="+filepath.Join(r.Dir, "e2e"),
	)
	cmd := exec.CommandContext(ctx, programs.Ginkgo, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+programs.Kubeconfig, "PATH="+filepath.Dir(programs.Kubectl)+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	// Each process of the group handles it; an interrupt may be ignored in the background.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = interruptGrace
	return cmd
}

// focuses are expressions that together match exactly the tests.
func focuses(tests []string) []string {
	var all []string
	var names []string
	size := 0
	flush := func() {
		if len(names) > 0 {
			all = append(all, "^"+regexp.QuoteMeta(suiteName)+" (?:"+strings.Join(names, "|")+")$")
		}
		names, size = nil, 0
	}
	for _, test := range tests {
		quoted := regexp.QuoteMeta(test)
		if size+len(quoted) > longestArgument {
			flush()
		}
		names, size = append(names, quoted), size+len(quoted)+1
	}
	flush()
	return all
}

// follow runs cmd to its end, keeps its output and records results; ended is how the
// command ended.
func (r *Run) follow(cmd *exec.Cmd, output io.Writer, tests []string, progress func(Result)) (ended, err error) {
	in, out := io.Pipe()
	cmd.Stdout, cmd.Stderr = out, out
	var recorded error
	reader := stream{known: map[string]bool{}, found: func(result Result) {
		recorded = errors.Join(recorded, r.record(result))
		progress(result)
	}}
	for _, test := range tests {
		reader.known[test] = true
	}
	finished := make(chan error, 1)
	go func() { finished <- reader.read(io.TeeReader(in, output)) }()
	ended = cmd.Run()
	_ = out.Close()
	err = <-finished
	return ended, errors.Join(err, recorded)
}

// takeReport reads Ginkgo's own report, which has the last word, writes each test's
// log and leaves of the report what concerns tests that ran.
func (r *Run) takeReport(file string, progress func(Result)) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read ginkgo's report: %w", err)
	}
	var reports []types.Report
	if err := json.Unmarshal(data, &reports); err != nil {
		return fmt.Errorf("read ginkgo's report: %w", err)
	}
	for i := range reports {
		var ran types.SpecReports
		for _, spec := range reports[i].SpecReports {
			if err := r.takeSpec(spec, progress); err != nil {
				return err
			}
			if spec.State != types.SpecStateSkipped || spec.Failure.Message != "" {
				ran = append(ran, spec)
			}
		}
		reports[i].SpecReports = ran
	}
	if data, err = json.Marshal(reports); err != nil {
		return fmt.Errorf("keep ginkgo's report: %w", err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		return fmt.Errorf("keep ginkgo's report: %w", err)
	}
	return nil
}

func (r *Run) takeSpec(spec types.SpecReport, progress func(Result)) error {
	result, ok := resultOf(spec)
	if !ok {
		if spec.LeafNodeType != types.NodeTypeIt && spec.Failed() {
			return r.writeLog(filepath.Join("suite", slug(spec.LeafNodeType.String())+".log"), spec)
		}
		return nil
	}
	before, known := r.Results[result.Name]
	if known && before.State != result.State {
		return fmt.Errorf("read ginkgo's report: it says that %q %s, its output said %s", result.Name, result.State, before.State)
	}
	if err := r.record(result); err != nil {
		return err
	}
	if !known {
		progress(result)
	}
	return r.writeLog(filepath.Join("tests", SIG(result.Name), slug(result.Name)+".log"), spec)
}

// writeLog keeps everything that a test said.
func (r *Run) writeLog(name string, spec types.SpecReport) error {
	file := filepath.Join(r.Dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("keep a test's log: %w", err)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s\n%s\n%s after %.1f s, begun %s\n\n", spec.FullText(), spec.LeafNodeLocation, spec.State,
		spec.RunTime.Seconds(), spec.StartTime.UTC().Format(time.RFC3339Nano))
	text.WriteString(spec.CapturedStdOutErr)
	text.WriteString(spec.CapturedGinkgoWriterOutput)
	if !spec.Failure.IsZero() {
		fmt.Fprintf(&text, "\n%s\n%s\n%s\n", spec.Failure.Message, spec.Failure.Location, spec.Failure.Location.FullStackTrace)
	}
	for _, failure := range spec.AdditionalFailures {
		fmt.Fprintf(&text, "\nthen: %s\n%s\n", failure.Failure.Message, failure.Failure.Location)
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
		return fmt.Errorf("keep a test's log: %w", err)
	}
	return nil
}
