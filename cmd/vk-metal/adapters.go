package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/vk-metal/vk-metal/internal/config"
	"github.com/vk-metal/vk-metal/internal/kubeletapi"
	"github.com/vk-metal/vk-metal/internal/logs"
	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/probes"
	"github.com/vk-metal/vk-metal/provider"
	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/systemd"
)

// logStreams is internal/logs as the provider wants it.
type logStreams struct {
	layout paths.Layout
	limits config.Logs
}

var _ provider.Logs = logStreams{}

// Create implements provider.Logs.
func (l logStreams) Create(_ context.Context, s provider.LogStream) (provider.LogPipes, error) {
	stdout, stderr, err := logs.Create(l.layout, logs.Stream{
		LogFile: s.Path, Unit: s.Unit, PodNamespace: s.Namespace, PodName: s.PodName, PodUID: s.PodUID,
		Container: s.Container, Attempt: s.Attempt, MaxSize: l.limits.MaxSize, MaxFiles: l.limits.MaxFiles,
		Stdin: s.Stdin, StdinOnce: s.StdinOnce, TTY: s.TTY,
	})
	if s.TTY {
		terminal := logs.TerminalOf(l.layout, s.PodUID, s.Container, s.Attempt)
		return provider.LogPipes{Terminal: &terminal}, err
	}
	pipes := provider.LogPipes{Stdout: stdout, Stderr: stderr}
	if s.Stdin {
		pipes.Stdin = logs.StdinPath(l.layout, s.PodUID, s.Container, s.Attempt)
	}
	return pipes, err
}

// WaitClosed implements provider.Logs.
func (l logStreams) WaitClosed(ctx context.Context, podUID, container string, attempt int) error {
	return logs.WaitClosed(ctx, l.layout, podUID, container, attempt)
}

// Discard implements provider.Logs.
func (l logStreams) Discard(podUID, container string, attempt int) error {
	return logs.Remove(l.layout, podUID, container, attempt)
}

// DiscardAll implements provider.Logs.
func (l logStreams) DiscardAll(podUID string) error { return logs.RemoveAll(l.layout, podUID) }

// Tail implements provider.Logs.
func (l logStreams) Tail(path string, maxLines, maxBytes int) (string, error) {
	return logs.Tail(path, maxLines, maxBytes)
}

// Attach implements provider.Logs.
func (l logStreams) Attach(ctx context.Context, podUID, container string, attempt int, streams provider.AttachStreams) error {
	options := logs.AttachOptions{Stdin: streams.Stdin, Stdout: streams.Stdout, Stderr: streams.Stderr}
	if streams.Resize != nil {
		options.Resize = logSizes(ctx, streams.Resize)
	}
	return logs.Attach(ctx, l.layout, podUID, container, attempt, options)
}

// logSizes converts terminal sizes until the source or ctx ends.
func logSizes(ctx context.Context, in <-chan systemd.TermSize) <-chan logs.Size {
	out := make(chan logs.Size)
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case s, ok := <-in:
				if !ok {
					return
				}
				select {
				case out <- logs.Size(s):
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}

// execProber runs exec probes inside a container.
type execProber struct {
	executor systemd.Executor
	layout   paths.Layout
}

// ExecProbe implements probes.Execer.
func (e execProber) ExecProbe(ctx context.Context, target probes.Target, command []string) (int, []byte, error) {
	out := &boundedBuffer{max: 10 << 10}
	code, err := e.executor.Exec(ctx, systemd.ExecRequest{
		Unit:       podplan.UnitName(target.PodUID, target.Container.Name, target.Attempt),
		LaunchSpec: e.layout.LaunchSpec(target.PodUID, target.Container.Name, target.Attempt),
		Args:       command, Stdout: out, Stderr: out,
	})
	return code, out.buf.Bytes(), err
}

// boundedBuffer keeps the first max bytes; several writers may share it.
type boundedBuffer struct {
	max int
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (b *boundedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf.Write(p[:min(len(p), b.max-b.buf.Len())])
	return len(p), nil
}

// apiBackend is the provider as the node's API wants it.
type apiBackend struct{ *provider.Provider }

var (
	_ kubeletapi.Pods    = apiBackend{}
	_ kubeletapi.Streams = apiBackend{}
)

// Logs implements kubeletapi.Pods.
func (b apiBackend) Logs(ctx context.Context, ref kubeletapi.Ref, opts *corev1.PodLogOptions, stdout, stderr io.Writer) error {
	where, err := b.ContainerLog(ctx, provider.ContainerRef(ref), opts.Previous)
	if err != nil {
		return err
	}
	running := func() bool {
		select {
		case <-where.Done:
			return false
		default:
			return where.Running
		}
	}
	err = logs.Read(ctx, where.Path, opts, running, stdout, stderr)
	if errors.Is(err, os.ErrNotExist) && !where.Running {
		return nil // it never wrote
	}
	return err
}

// Exec implements kubeletapi.Streams.
func (b apiBackend) Exec(ctx context.Context, ref kubeletapi.Ref, cmd []string, stdin io.Reader, stdout, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return b.Provider.Exec(ctx, provider.ContainerRef(ref), cmd, stdin, stdout, stderr, tty, resize)
}

// Attach implements kubeletapi.Streams.
func (b apiBackend) Attach(ctx context.Context, ref kubeletapi.Ref, stdin io.Reader, stdout, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return b.Provider.Attach(ctx, provider.ContainerRef(ref), stdin, stdout, stderr, tty, resize)
}

// PortForward implements kubeletapi.Streams.
func (b apiBackend) PortForward(ctx context.Context, ref kubeletapi.Ref, port int32, stream io.ReadWriteCloser) error {
	return b.Provider.PortForward(ctx, provider.ContainerRef(ref), port, stream)
}
