package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"
)

// machineShellCommand becomes a login shell in the machine: it keeps the terminal,
// which a relayed command would not.
func machineShellCommand(opts *options) *cobra.Command {
	return &cobra.Command{
		Use: "shell NAME", Short: "Enter it", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := openMachine(opts, args[0])
			if err != nil {
				return err
			}
			leader, err := m.Leader(cmd.Context())
			if err != nil {
				return err
			}
			nsenter, err := exec.LookPath("nsenter")
			if err != nil {
				return fmt.Errorf("enter %s: %w", m.Name, err)
			}
			argv := []string{"nsenter", "-t", strconv.Itoa(leader), "-a", "-r", "-w", "/bin/bash", "-l"}
			env := []string{"TERM=" + os.Getenv("TERM"), "HOME=/root", "LANG=C.UTF-8"}
			return syscall.Exec(nsenter, argv, env)
		},
	}
}
