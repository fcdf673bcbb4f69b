package main

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/cluster/controlplane"
	"github.com/vk-metal/vk-metal/tests/progress"
)

func upCommand(opts *options) *cobra.Command {
	var nodes, servers int
	cmd := &cobra.Command{
		Use: "up", Short: "Bring a cluster up, or complete the one that is there", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cluster.Up(cmd.Context(), cluster.Options{
				Dir: opts.state, Nodes: nodes, Progress: progress.New(cmd.ErrOrStderr()),
				ControlPlane: controlplane.Options{APIServers: servers},
			})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "export KUBECONFIG=%s\n", c.ControlPlane.Kubeconfig())
			return err
		},
	}
	cmd.Flags().IntVar(&nodes, "nodes", 2, "how many machines join")
	cmd.Flags().IntVar(&servers, "api-servers", 1, "how many API servers there are")
	return cmd
}

func downCommand(opts *options) *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Remove the cluster and everything that it made on this host", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			step := progress.New(cmd.ErrOrStderr()).Step("remove the cluster in %s", opts.state)
			return step.Done(cluster.Down(cmd.Context(), opts.state))
		},
	}
}

func kubectlCommand(opts *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "kubectl [arguments]", Short: "Run kubectl as the cluster's administrator",
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := cluster.Open(opts.state, nil)
			if err != nil {
				return err
			}
			argv := append([]string{"kubectl", "--kubeconfig", c.ControlPlane.Kubeconfig()}, args...)
			return syscall.Exec(c.ControlPlane.Kubectl(), argv, os.Environ())
		},
	}
	cmd.Flags().SetInterspersed(false) // flags behind the first word are kubectl's
	return cmd
}

func joinCommandCommand(opts *options) *cobra.Command {
	return &cobra.Command{
		Use: "join-command", Short: "Make a bootstrap token and print the command that lets a server join", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cluster.Open(opts.state, nil)
			if err != nil {
				return err
			}
			token, err := c.ControlPlane.NewToken(cmd.Context(), time.Hour)
			if err != nil {
				return err
			}
			for i, word := range c.JoinCommand(token) {
				if i > 0 {
					fmt.Fprint(cmd.OutOrStdout(), " ")
				}
				fmt.Fprint(cmd.OutOrStdout(), word)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout())
			return err
		},
	}
}

func logsCommand(opts *options) *cobra.Command {
	return &cobra.Command{
		Use: "logs DIR", Short: "Collect everything that explains a failure into a directory", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cluster.Open(opts.state, nil)
			if err != nil {
				return err
			}
			return c.CollectLogs(cmd.Context(), args[0])
		},
	}
}

// apiserverCommand stops and starts API servers, for outages.
func apiserverCommand(opts *options) *cobra.Command {
	parent := &cobra.Command{Use: "apiserver", Short: "Stop and start the API server"}
	for _, action := range []struct {
		use, short string
		run        func(*controlplane.ControlPlane, context.Context, int) error
	}{
		{"stop", "Stop it: an outage", (*controlplane.ControlPlane).StopAPIServer},
		{"start", "Start it again", (*controlplane.ControlPlane).StartAPIServer},
	} {
		var number int
		cmd := &cobra.Command{
			Use: action.use, Short: action.short, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				c, err := cluster.Open(opts.state, nil)
				if err != nil {
					return err
				}
				return action.run(c.ControlPlane, cmd.Context(), number)
			},
		}
		cmd.Flags().IntVar(&number, "number", 0, "which one, if there are several")
		parent.AddCommand(cmd)
	}
	return parent
}
