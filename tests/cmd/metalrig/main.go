// Command metalrig drives the rig by hand: a control plane, machines that run
// vk-metal, a registry, and the demo. Tests use the same packages.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vk-metal/vk-metal/tests/rig"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := newCommand().ExecuteContext(ctx)
	if err == nil {
		return
	}
	os.Exit(exitCode(err))
}

// exitCode is that of the program that was run, if it was that which failed.
func exitCode(err error) int {
	var inMachine *rig.ExitError
	if errors.As(err, &inMachine) {
		return inMachine.Code
	}
	var onHost *exec.ExitError
	if errors.As(err, &onHost) {
		return onHost.ExitCode()
	}
	if !errors.Is(err, errSaid) {
		fmt.Fprintln(os.Stderr, "metalrig:", err)
	}
	return 1
}

// errSaid ends a command that has already told what is wrong.
var errSaid = errors.New("")

// options are the flags that every command has.
type options struct{ state string }

func newCommand() *cobra.Command {
	opts := &options{}
	root := &cobra.Command{
		Use:           "metalrig",
		Short:         "Machines with systemd, a Kubernetes control plane and vk-metal, all on this host",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&opts.state, "state", defaultState(), "state directory of the rig ($VK_METAL_STATE)")
	root.AddCommand(
		demoCommand(), conformanceCommand(), upCommand(opts), downCommand(opts), machineCommand(opts), kubectlCommand(opts), joinCommandCommand(opts),
		logsCommand(opts), apiserverCommand(opts), imagesCommand(), registryCommand(), controllerCommand(),
	)
	return root
}

// defaultState is the demo's, so that its commands are short.
func defaultState() string {
	if dir := os.Getenv("VK_METAL_STATE"); dir != "" {
		return dir
	}
	if dir, err := demoDir(); err == nil {
		return filepath.Join(dir, "rig")
	}
	return "/var/lib/vk-metal-rig"
}
