package systemd

import (
	"context"
	"io"
)

// TermSize is a terminal's size in characters.
type TermSize struct{ Width, Height uint16 }

// ExecRequest runs one more process inside a running container: same namespaces,
// cgroup, root, user, capabilities and environment.
type ExecRequest struct {
	Unit       string // the attempt's unit
	LaunchSpec string // the attempt's launchspec.Spec: user, env, capabilities
	Args       []string
	Stdin      io.Reader // nil: /dev/null
	Stdout     io.Writer
	Stderr     io.Writer // nil with TTY
	TTY        bool
	Resize     <-chan TermSize
}

// Executor is what exec, exec probes and exec hooks need. *Manager implements it.
type Executor interface {
	// Exec returns the command's exit code. An error means that it could not be run;
	// ctx ending kills it.
	Exec(ctx context.Context, req ExecRequest) (exitCode int, err error)
}
