// Command vk-metal is the node agent and its tools. It only wires: what it does lies in
// the packages that it joins.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vk-metal/vk-metal/internal/config"
	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := newRoot().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "vk-metal: %s\n", err)
		os.Exit(1)
	}
}

// globals are the flags of every command.
type globals struct {
	configPath string
	layout     paths.Layout
}

func newRoot() *cobra.Command {
	g := &globals{layout: paths.Default()}
	root := &cobra.Command{
		Use:           "vk-metal",
		Short:         "Make this server a Kubernetes node, with systemd as the runtime",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&g.configPath, "config", config.DefaultPath, "configuration file")
	root.AddCommand(newNode(g), newJoin(g), newConfig(g), newImages(g), newPlan(g), newBGP(g), newEncryption(g), newController(), newCleanNetwork(), newVersion())
	root.AddCommand(faultCommands()...)
	return root
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version.String())
			return err
		},
	}
}

func newConfig(g *globals) *cobra.Command {
	group := &cobra.Command{Use: "config", Short: "Look at the configuration"}
	group.AddCommand(&cobra.Command{
		Use:   "check [file]",
		Short: "Check the configuration file; prints every mistake with its line",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := g.configPath
			if len(args) == 1 {
				path = args[0]
			}
			if _, err := config.Load(path); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: good\n", path)
			return err
		},
	})
	return group
}
