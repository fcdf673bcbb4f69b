package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/progress"
	"github.com/vk-metal/vk-metal/tests/rig"
)

// machineCommand groups what one does to a server.
func machineCommand(opts *options) *cobra.Command {
	parent := &cobra.Command{Use: "machine", Short: "Do something to a machine"}
	parent.AddCommand(
		machineListCommand(opts), machineRunCommand(opts), machineShellCommand(opts), machineJournalCommand(opts), machineAddCommand(opts),
		machineAction(opts, "start", "Power it on and wait until it has booted", func(m *rig.Machine, ctx context.Context) error {
			if err := m.Start(ctx); err != nil {
				return err
			}
			return m.WaitBooted(ctx)
		}),
		machineAction(opts, "stop", "Shut it down", (*rig.Machine).Stop),
		machineAction(opts, "reboot", "Reboot it and wait until it has booted", func(m *rig.Machine, ctx context.Context) error {
			if err := m.Reboot(ctx); err != nil {
				return err
			}
			return m.WaitBooted(ctx)
		}),
		machineAction(opts, "power-cut", "Pull its plug; start brings it back", (*rig.Machine).PowerCut),
		machineAction(opts, "partition", "Cut it off the network silently", (*rig.Machine).Partition),
		machineAction(opts, "heal", "End a partition", (*rig.Machine).Heal),
	)
	return parent
}

func machineAction(opts *options, name, short string, act func(*rig.Machine, context.Context) error) *cobra.Command {
	return &cobra.Command{
		Use: name + " NAME", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := openMachine(opts, args[0])
			if err != nil {
				return err
			}
			return act(m, cmd.Context())
		},
	}
}

func openMachine(opts *options, name string) (*rig.Machine, error) {
	r, err := rig.Open(opts.state)
	if err != nil {
		return nil, err
	}
	return r.Machine(name)
}

func machineListCommand(opts *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List machines with their state and addresses", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := rig.Open(opts.state)
			if err != nil {
				return err
			}
			for _, m := range r.Machines() {
				state, boots, err := m.State(cmd.Context())
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%-12s %-8s %-8s boot %-3d %s %s\n", m.Name, m.Rack, state, boots, m.V4, m.V6)
			}
			return nil
		},
	}
}

func machineRunCommand(opts *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "run NAME COMMAND [arguments]", Short: "Run a command in it as root", Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := openMachine(opts, args[0])
			if err != nil {
				return err
			}
			return m.Exec(cmd.Context(), rig.Command{Argv: args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func machineJournalCommand(opts *options) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "journal NAME [unit]...", Short: "Print its journal of this boot", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := openMachine(opts, args[0])
			if err != nil {
				return err
			}
			if follow {
				var units []string
				for _, unit := range args[1:] {
					units = append(units, "-u", unit)
				}
				return m.FollowJournal(cmd.Context(), cmd.OutOrStdout(), units...)
			}
			text, err := m.Journal(cmd.Context(), args[1:]...)
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), text)
			return err
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new lines")
	return cmd
}

func machineAddCommand(opts *options) *cobra.Command {
	var rack string
	cmd := &cobra.Command{
		Use: "add NAME", Short: "Make one more machine and let it join", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cluster.Open(opts.state, progress.New(cmd.ErrOrStderr()))
			if err != nil {
				return err
			}
			_, err = c.AddNode(cmd.Context(), args[0], rack)
			return err
		},
	}
	cmd.Flags().StringVar(&rack, "rack", "", "where it stands")
	return cmd
}
