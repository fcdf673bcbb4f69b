package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"sync"

	vklog "github.com/virtual-kubelet/virtual-kubelet/log"
	"k8s.io/klog/v2"

	"github.com/vk-metal/vk-metal/internal/node"
)

// newLogger logs to stderr, for the journal in its form, and takes over the libraries' logs.
func newLogger(level slog.Leveler) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewTextHandler(os.Stderr, options)
	if os.Getenv("JOURNAL_STREAM") != "" {
		handler = newJournalHandler(os.Stderr, level)
	}
	log := slog.New(handler)
	slog.SetDefault(log)
	klog.SetSlogLogger(slog.New(quieter{log.With("from", "client-go").Handler()}))
	vklog.L = node.VKLogger{Log: log.With("from", "virtual-kubelet")}
	return log
}

// quieter makes a library's information debug: it tells of its own workings.
type quieter struct{ slog.Handler }

// Enabled implements slog.Handler.
func (q quieter) Enabled(ctx context.Context, level slog.Level) bool {
	return q.Handler.Enabled(ctx, quiet(level))
}

// Handle implements slog.Handler.
func (q quieter) Handle(ctx context.Context, r slog.Record) error {
	r.Level = quiet(r.Level)
	return q.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (q quieter) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quieter{q.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (q quieter) WithGroup(name string) slog.Handler { return quieter{q.Handler.WithGroup(name)} }

func quiet(level slog.Level) slog.Level {
	if level < slog.LevelWarn {
		return slog.LevelDebug
	}
	return level
}

// journalHandler writes lines as journald takes them from stderr: "<priority>message
// key=value", without the time and level that the journal has itself.
type journalHandler struct {
	slog.Handler
	out *journalOut
}

type journalOut struct {
	mu   sync.Mutex
	line bytes.Buffer
	w    io.Writer
}

func newJournalHandler(w io.Writer, level slog.Leveler) slog.Handler {
	out := &journalOut{w: w}
	text := slog.NewTextHandler(&out.line, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
				return slog.Attr{}
			}
			return a
		},
	})
	return journalHandler{text, out}
}

// Handle implements slog.Handler.
func (h journalHandler) Handle(ctx context.Context, r slog.Record) error {
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	h.out.line.Reset()
	h.out.line.WriteString(priority(r.Level))
	if err := h.Handler.Handle(ctx, r); err != nil {
		return err
	}
	_, err := h.out.w.Write(h.out.line.Bytes())
	return err
}

// WithAttrs implements slog.Handler.
func (h journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return journalHandler{h.Handler.WithAttrs(attrs), h.out}
}

// WithGroup implements slog.Handler.
func (h journalHandler) WithGroup(name string) slog.Handler {
	return journalHandler{h.Handler.WithGroup(name), h.out}
}

// priority is the syslog priority in sd-daemon(3)'s form.
func priority(level slog.Level) string {
	switch {
	case level >= slog.LevelError:
		return "<3>"
	case level >= slog.LevelWarn:
		return "<4>"
	case level >= slog.LevelInfo:
		return "<6>"
	}
	return "<7>"
}
