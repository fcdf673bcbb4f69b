package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/conformance"
	"github.com/vk-metal/vk-metal/tests/progress"
	"github.com/vk-metal/vk-metal/tests/rig"
)

// conformanceMutationsCommand judges the suite and this harness: tests that are known to
// pass must fail once vk-metal does the thing wrong that they look at.
func conformanceMutationsCommand(opts *conformanceOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use: "mutations", Short: "Check that tests fail which should when vk-metal errs on purpose", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.complete(); err != nil {
				return err
			}
			return runMutations(cmd.Context(), *opts, cmd.OutOrStdout())
		},
	}
	return cmd
}

func runMutations(ctx context.Context, opts conformanceOptions, out io.Writer) error {
	printer := progress.New(out)
	_, programs, err := planConformance(ctx, opts, printer)
	if err != nil {
		return err
	}
	release, err := rig.Reserve(opts.rig())
	if err != nil {
		return err
	}
	defer release()
	c, err := cluster.Up(ctx, cluster.Options{
		Dir: opts.rig(), Nodes: opts.nodes, ServiceProxy: cluster.ServiceProxy(opts.proxy), ClusterDNS: true,
		BuildTag: conformance.MutationTag, Progress: printer,
	})
	if err != nil {
		return err
	}
	programs.Kubectl, programs.Kubeconfig = c.ControlPlane.Kubectl(), c.ControlPlane.Kubeconfig()
	j := judge{opts: opts, cluster: c, programs: programs, printer: printer}
	if j.version, err = nodeVersion(ctx, c); err != nil {
		return err
	}
	errs := []error{j.judge(ctx, conformance.Mutation{Name: conformance.NoMutation, Tests: conformance.MutationTests()})}
	for _, mutation := range conformance.Mutations {
		errs = append(errs, j.judge(ctx, mutation))
	}
	const cleaning = 5 * time.Minute
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleaning)
	defer cancel()
	if opts.keep {
		errs = append(errs, j.mutate(late, conformance.NoMutation))
	} else {
		errs = append(errs, cluster.Down(late, opts.rig()))
	}
	return errors.Join(errs...)
}

// judge runs tests against agents that err in one way.
type judge struct {
	opts     conformanceOptions
	cluster  *cluster.Cluster
	programs conformance.Programs
	printer  *progress.Printer
	version  string // of vk-metal
}

// judge wants all tests of a mutation to fail, and of none to pass.
func (j judge) judge(ctx context.Context, mutation conformance.Mutation) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	name := mutation.Name
	if err := j.mutate(ctx, name); err != nil {
		return err
	}
	plan := conformance.Plan{
		Tests: mutation.Tests, Begun: time.Now().UTC(), Package: j.cluster.Package(), Version: j.version, Mutation: name,
		Nodes: j.opts.nodes, ServiceProxy: j.opts.proxy, Suite: j.programs.E2E,
	}
	run, err := conformance.Begin(filepath.Join(j.opts.mutations(), name), plan)
	if err != nil {
		return err
	}
	j.printer.Printf("mutation %s: %d tests, results go to %s", name, len(mutation.Tests), run.Dir)
	if err := run.Execute(ctx, j.programs, j.opts.parallel, (&conformanceProgress{printer: j.printer, run: run}).show); err != nil {
		return err
	}
	summary, err := run.Finish()
	if err != nil {
		return err
	}
	if name == conformance.NoMutation {
		if summary.Passed != len(mutation.Tests) {
			return fmt.Errorf("without a mutation: %s", summary.Tally)
		}
		return nil
	}
	var errs []error
	for _, survivor := range run.Survivors() {
		errs = append(errs, fmt.Errorf("mutation %s: %s is %s", name, survivor.Name, survivor.State))
	}
	return errors.Join(errs...)
}

// mutate restarts all agents with a mutation.
func (j judge) mutate(ctx context.Context, name string) error {
	if name == conformance.NoMutation {
		name = ""
	}
	const dropIn = "/run/systemd/system/vk-metal.service.d/mutation.conf"
	for _, machine := range j.cluster.Machines() {
		text := fmt.Sprintf("[Service]\nEnvironment=%s=%s\n", conformance.MutationVariable, name)
		if err := machine.WriteFile(ctx, dropIn, []byte(text), 0o644); err != nil {
			return err
		}
		if _, err := machine.Run(ctx, "/bin/sh", "-c", "systemctl daemon-reload && systemctl restart vk-metal.service"); err != nil {
			return fmt.Errorf("restart vk-metal with mutation %q: %w", name, err)
		}
		if err := j.cluster.WaitNodeReady(ctx, machine.Name); err != nil {
			return err
		}
	}
	return nil
}
