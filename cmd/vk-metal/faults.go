//go:build faults

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vk-metal/vk-metal/provider"
)

// faultCommands lists the steps for those who arm them.
func faultCommands() []*cobra.Command {
	return []*cobra.Command{{
		Use: "fault-steps", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, step := range provider.Steps() {
				fmt.Fprintln(cmd.OutOrStdout(), step)
			}
			return nil
		},
	}}
}

// faultFile says where this agent is to die: "step:nth". It is taken away first, so that
// the agent that systemd starts next lives on.
const faultFile = "/run/vk-metal-fault"

// stepHook makes a build for fault tests kill itself, as a crash would, when it comes to a
// step for the nth time since the file was written.
func stepHook() func(string) {
	var mu sync.Mutex
	seen := map[string]int{}
	return func(step string) {
		mu.Lock()
		defer mu.Unlock()
		data, err := os.ReadFile(faultFile)
		if errors.Is(err, fs.ErrNotExist) {
			clear(seen)
			return
		}
		seen[step]++
		wanted, nth, ok := strings.Cut(strings.TrimSpace(string(data)), ":")
		n, numberErr := strconv.Atoi(nth)
		if err != nil || !ok || numberErr != nil || wanted != step || seen[step] != n {
			return
		}
		if os.Rename(faultFile, faultFile+".fired") == nil {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
}
