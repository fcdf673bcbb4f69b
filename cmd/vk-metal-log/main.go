// Command vk-metal-log is the log writer of a node (vk-metal-log.service): it empties
// the containers' FIFOs into /var/log/pods. See package logwriter.
package main

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/vk-metal/vk-metal/internal/logwriter"
	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/internal/version"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		_, _ = os.Stdout.WriteString("vk-metal-log " + version.Version() + "\n")
		return
	}
	// Memory is a handful of buffers that are used again: a small heap, kept small.
	debug.SetGCPercent(20)
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err := run(); err != nil {
		slog.Error("the log writer cannot go on", "err", err)
		os.Exit(1)
	}
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
