package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/tests/artifacts"
	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/cluster/controlplane"
	"github.com/vk-metal/vk-metal/tests/conformance"
	"github.com/vk-metal/vk-metal/tests/progress"
	"github.com/vk-metal/vk-metal/tests/rig"
)

// conformanceOptions are what `make conformance` can say.
type conformanceOptions struct {
	selection conformance.Selection
	nodes     int
	parallel  int
	proxy     string
	dir       string // of the runs and of the cluster
	junit     string // file for one more copy of the report
	keep      bool
}

// conformanceCommand runs upstream's suite against a cluster of its own.
func conformanceCommand() *cobra.Command {
	opts := conformanceOptions{}
	cmd := &cobra.Command{
		Use: "conformance", Short: "Run upstream's conformance suite against a cluster of vk-metal machines", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.complete(); err != nil {
				return err
			}
			return runConformance(cmd.Context(), opts, cmd.OutOrStdout())
		},
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&opts.selection.Focus, "focus", "", "expression that chooses among all upstream tests (all of conformance)")
	flags.StringVar(&opts.selection.Skip, "skip", "", "expression that leaves tests out")
	flags.StringVar(&opts.selection.Gates, "feature-gates", "", "feature gates of the control plane, such as A=true,B=true")
	flags.BoolVar(&opts.selection.Short, "short", false, "run the short list: what CI runs")
	flags.StringVar(&opts.junit, "junit", "", "also put the JUnit report into this file")
	flags.IntVar(&opts.nodes, "nodes", 2, "how many machines join")
	flags.IntVar(&opts.parallel, "parallel", 2, "how many tests run at a time")
	flags.StringVar(&opts.proxy, "service-proxy", "", "who makes Services work: vk-metal or kube-proxy")
	flags.BoolVar(&opts.keep, "keep", false, "leave the cluster running; the next run takes it over, with vk-metal updated")
	flags.StringVar(&opts.dir, "dir", "", "where runs and cluster are kept (.conformance in the checkout)")
	cmd.AddCommand(conformanceReportCommand(&opts), conformanceDownCommand(&opts), conformanceMutationsCommand(&opts))
	return cmd
}

func (o *conformanceOptions) complete() error {
	if o.dir == "" {
		root, err := artifacts.Root()
		if err != nil {
			return err
		}
		o.dir = filepath.Join(root, ".conformance")
	}
	proxy, err := cluster.ParseServiceProxy(o.proxy)
	o.proxy = string(proxy)
	return err
}

func (o *conformanceOptions) runs() string      { return filepath.Join(o.dir, "runs") }
func (o *conformanceOptions) mutations() string { return filepath.Join(o.dir, "mutations") }
func (o *conformanceOptions) rig() string       { return filepath.Join(o.dir, "rig") }

func conformanceDownCommand(opts *conformanceOptions) *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Remove the cluster that a run kept", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.complete(); err != nil {
				return err
			}
			step := progress.New(cmd.OutOrStdout()).Step("remove the cluster")
			return step.Done(cluster.Down(cmd.Context(), opts.rig()))
		},
	}
}

func conformanceReportCommand(opts *conformanceOptions) *cobra.Command {
	return &cobra.Command{
		Use: "report [RUN]...", Short: "Write docs/conformance.md from runs; without any, from the last one of all tests and those after it",
		RunE: func(_ *cobra.Command, args []string) error {
			if err := opts.complete(); err != nil {
				return err
			}
			root, err := artifacts.Root()
			if err != nil {
				return err
			}
			runs, err := openRuns(opts.runs(), args)
			if err != nil {
				return err
			}
			mutations, err := openMutations(opts.mutations())
			if err != nil {
				return err
			}
			return conformance.WriteReport(filepath.Join(root, "docs", "conformance.md"), runs, mutations)
		},
	}
}

func openRuns(dir string, names []string) ([]*conformance.Run, error) {
	if len(names) == 0 {
		return conformance.SinceFull(dir)
	}
	var runs []*conformance.Run
	for _, name := range names {
		run, err := conformance.Open(filepath.Join(dir, filepath.Base(name)))
		if err != nil {
			return nil, err
		}
		runs = append(runs, run)
	}
	return runs, nil
}

// openMutations opens the last run of each fault that has one.
func openMutations(dir string) (map[string]*conformance.Run, error) {
	runs := map[string]*conformance.Run{}
	names := []string{conformance.NoMutation}
	for _, mutation := range conformance.Mutations {
		names = append(names, mutation.Name)
	}
	for _, name := range names {
		run, err := conformance.Last(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		runs[name] = run
	}
	return runs, nil
}

func runConformance(ctx context.Context, opts conformanceOptions, out io.Writer) error {
	printer := progress.New(out)
	plan, programs, err := planConformance(ctx, opts, printer)
	if err != nil {
		return err
	}
	release, err := rig.Reserve(opts.rig())
	if err != nil {
		return err
	}
	defer release()
	c, err := cluster.Up(ctx, cluster.Options{
		Dir: opts.rig(), Nodes: opts.nodes, ServiceProxy: cluster.ServiceProxy(opts.proxy), ClusterDNS: true, Progress: printer,
		ControlPlane: controlplane.Options{FeatureGates: opts.selection.Gates},
	})
	if err != nil {
		return err
	}
	programs.Kubectl, programs.Kubeconfig = c.ControlPlane.Kubectl(), c.ControlPlane.Kubeconfig()
	plan.Package = c.Package()
	if plan.Version, err = nodeVersion(ctx, c); err != nil {
		return err
	}
	run, err := conformance.Begin(opts.runs(), plan)
	if err != nil {
		return err
	}
	printer.Printf("%d tests to run, %d at a time; results go to %s", len(run.Remaining()), opts.parallel, run.Dir)
	if ended := len(run.Plan.Tests) - len(run.Remaining()); ended > 0 {
		printer.Printf("an interrupted run is resumed: %d tests have a result", ended)
	}
	executed := run.Execute(ctx, programs, opts.parallel, (&conformanceProgress{printer: printer, run: run}).show)
	return concludeConformance(ctx, opts, c, run, executed, out)
}

// nodeVersion is what the first node says it runs.
func nodeVersion(ctx context.Context, c *cluster.Cluster) (string, error) {
	node, err := c.Client.CoreV1().Nodes().Get(ctx, cluster.NodeName(0), metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("ask for the version of vk-metal: %w", err)
	}
	return node.Status.NodeInfo.KubeletVersion, nil
}

// planConformance builds the programs and chooses the tests.
func planConformance(ctx context.Context, opts conformanceOptions, printer *progress.Printer) (plan conformance.Plan, programs conformance.Programs, err error) {
	store, err := artifacts.NewStore("", printer)
	if err != nil {
		return plan, programs, err
	}
	if programs.E2E, err = store.E2E(ctx); err != nil {
		return plan, programs, err
	}
	if programs.Ginkgo, err = store.Ginkgo(ctx); err != nil {
		return plan, programs, err
	}
	available, err := conformance.Available(ctx, programs.E2E)
	if err != nil {
		return plan, programs, err
	}
	tests, err := conformance.Conformance()
	if err != nil {
		return plan, programs, err
	}
	skips, err := conformance.ReadSkips(tests)
	if err != nil {
		return plan, programs, err
	}
	plan, err = conformance.NewPlan(opts.selection, available, tests, skips)
	plan.Suite, plan.Nodes, plan.ServiceProxy = programs.E2E, opts.nodes, opts.proxy
	return plan, programs, err
}

// concludeConformance leaves the machines' journals, ends an uninterrupted run with its
// summary and takes the cluster down.
func concludeConformance(ctx context.Context, opts conformanceOptions, c *cluster.Cluster, run *conformance.Run, executed error, out io.Writer) error {
	const collecting = 5 * time.Minute
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), collecting)
	defer cancel()
	var errs []error
	if err := c.CollectLogs(late, filepath.Join(run.Dir, "cluster")); err != nil {
		fmt.Fprintf(out, "not everything could be collected: %v\n", err)
	}
	if !opts.keep {
		errs = append(errs, cluster.Down(late, opts.rig()))
	}
	if ctx.Err() != nil {
		fmt.Fprintf(out, "interrupted: %d tests have no result; the same command goes on with them\n", len(run.Remaining()))
		return errors.Join(append(errs, executed)...)
	}
	summary, err := run.Finish()
	errs = append(errs, executed, err, run.Check(), copyReport(run, opts.junit))
	fmt.Fprintf(out, "\n%s\n", summary.Table())
	for _, failure := range summary.Failures {
		fmt.Fprintf(out, "%s: %s\n", failure.State, failure.Name)
	}
	fmt.Fprintf(out, "JUnit report, the tests' logs and the machines' journals are in %s\n", run.Dir)
	if failed := summary.Failed + summary.Missing; failed > 0 {
		errs = append(errs, fmt.Errorf("%d tests failed", failed))
	}
	if err := errors.Join(errs...); err != nil {
		fmt.Fprintf(os.Stderr, "metalrig: %v\n", err)
		fmt.Fprintln(out, summary.Tally)
		return errSaid
	}
	fmt.Fprintln(out, summary.Tally)
	return nil
}

// copyReport copies the JUnit report of a run for whoever collects reports.
func copyReport(run *conformance.Run, file string) error {
	if file == "" {
		return nil
	}
	data, err := os.ReadFile(run.JUnit())
	if err != nil {
		return fmt.Errorf("copy the JUnit report: %w", err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		return fmt.Errorf("copy the JUnit report: %w", err)
	}
	return nil
}

// conformanceProgress prints a line per test that ended.
type conformanceProgress struct {
	printer *progress.Printer
	run     *conformance.Run
	mu      sync.Mutex
}

func (p *conformanceProgress) show(result conformance.Result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	planned := len(p.run.Plan.Tests)
	p.printer.Printf("%d/%d %-7s %5.1f s  %s", planned-len(p.run.Remaining()), planned, result.State, result.Seconds, result.Name)
}
