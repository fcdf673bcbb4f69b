//go:build !faults

package main

import "github.com/spf13/cobra"

func faultCommands() []*cobra.Command { return nil }

// stepHook is nil: only a build for fault tests can be stopped at a step.
func stepHook() func(string) { return nil }
