// Command vk-metal-log is the log writer of a node (vk-metal-log.service): it empties
// the containers' FIFOs into /var/log/pods. See package logwriter.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/logwriter"
	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/internal/version"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		_, _ = os.Stdout.WriteString("vk-metal-log " + version.Version() + "\n")
		return
	}
	if err := hide(); err != nil {
		slog.Error("the log writer cannot hide itself", "err", err)
		os.Exit(1)
	}
	// Memory is a handful of buffers that are used again: a small heap, kept small.
	debug.SetGCPercent(20)
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err := run(); err != nil {
		slog.Error("the log writer cannot go on", "err", err)
		os.Exit(1)
	}
}

// hide closes /proc/PID to who may not trace every process. The kernel would let in root
// with as few capabilities as we have, a container that sees the host's processes: to the
// host's files, by /proc/PID/root.
func hide() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the process undumpable: %w", err)
	}
	return nil
}

func run() error {
	w, err := logwriter.New(logwriter.Options{
		Dir:     paths.Default().LogStreams(),
		Journal: logwriter.JournalSocket,
	})
	if err != nil {
		return err
	}
	// No signal is handled: the writer may be killed at any instant.
	return w.Run(context.Background())
}
