package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command is a program to run in a machine.
type Command struct {
	Argv   []string
	Env    []string // added to PATH, HOME=/root, LANG=C.UTF-8
	Dir    string   // "" is /
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// ExitError is the result of a command that ran and did not exit with 0.
type ExitError struct {
	Machine string
	Argv    []string
	Code    int    // 128+n when killed by signal n; 127 when there is no such program
	Stderr  string // the tail of it
}

// Error names machine, command and code.
func (e *ExitError) Error() string {
	msg := fmt.Sprintf("run %q in machine %s: exit code %d", e.Argv, e.Machine, e.Code)
	if e.Stderr != "" {
		msg += ": " + e.Stderr
	}
	return msg
}

// Exec runs a command in the machine as root, in all its namespaces. A command that
// exits with another code than 0 is an *ExitError. When ctx ends it is killed with its
// process group. A process that it leaves behind with its streams is not waited for.
func (m *Machine) Exec(ctx context.Context, c Command) error {
	var tail tailBuffer
	c.Stderr = tee(c.Stderr, &tail)
	run := m.nsenter
	if m.record.VM {
		run = m.askAgent
	}
	code, err := run(ctx, c)
	if err = errors.Join(ctx.Err(), err); err != nil {
		return fmt.Errorf("run %q in machine %s: %w", c.Argv, m.Name, err)
	}
	if code != 0 {
		return &ExitError{Machine: m.Name, Argv: c.Argv, Code: code, Stderr: tail.String()}
	}
	return nil
}

// tee writes to both, or to the one there is.
func tee(w io.Writer, tail io.Writer) io.Writer {
	if w == nil {
		return tail
	}
	return io.MultiWriter(w, tail)
}

// nsenter runs a command in a container's namespaces and returns its exit code.
func (m *Machine) nsenter(ctx context.Context, c Command) (int, error) {
	leader, err := m.leader(ctx)
	if err != nil {
		return 0, err
	}
	args := append([]string{"-t", strconv.Itoa(leader), "-a", "-r", "-w", "--"}, c.inDir()...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = append(slices.Clone(defaultEnv), c.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	return runGroup(cmd)
}

// inDir is the command line that begins in c.Dir.
func (c Command) inDir() []string {
	if c.Dir == "" {
		return c.Argv
	}
	return append([]string{"/bin/sh", "-c", `cd "$0" && exec "$@"`, c.Dir}, c.Argv...)
}

// streamGrace is how long a command's streams are read after its end when something
// that it started holds them.
const streamGrace = 2 * time.Second

// runGroup runs cmd in a process group of its own, which is killed when cmd's context
// ends, and returns the exit code.
func runGroup(cmd *exec.Cmd) (int, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &unix.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = streamGrace
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.Is(err, exec.ErrWaitDelay):
		return 0, nil
	case errors.As(err, &exit):
		return exitCode(exit), nil
	}
	return 0, err
}

// exitCode is the shell's: 128+n for signal n.
func exitCode(exit *exec.ExitError) int {
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return exit.ExitCode()
}

// leader is the pid, on the host, of the machine's PID 1.
func (m *Machine) leader(ctx context.Context) (int, error) {
	if !m.supervised() {
		return 0, fmt.Errorf("enter machine %s: it is off", m.Name)
	}
	rep, err := m.ask(ctx, opStatus)
	if err != nil {
		return 0, err
	}
	if rep.Leader == 0 {
		return 0, fmt.Errorf("enter machine %s: it is %s", m.Name, rep.State)
	}
	return rep.Leader, nil
}

// Leader is the pid, on the host, of the machine's PID 1, for tools such as nsenter.
func (m *Machine) Leader(ctx context.Context) (int, error) { return m.leader(ctx) }

// Run executes argv and returns its stdout; stderr's tail is in the *ExitError.
func (m *Machine) Run(ctx context.Context, argv ...string) (string, error) {
	var out bytes.Buffer
	err := m.Exec(ctx, Command{Argv: argv, Stdout: &out})
	return out.String(), err
}

// CopyIn copies a file or directory of the host into the machine: dst is the path it
// gets there; modes are kept, owner is root. The machine must be on.
func (m *Machine) CopyIn(ctx context.Context, src, dst string) error {
	tar := exec.CommandContext(ctx, "tar", "-C", filepath.Dir(src), "--owner=0", "--group=0", "-c", "--", filepath.Base(src))
	script := `set -e; d=$(mktemp -d "$2/.copy.XXXXXX"); trap 'rm -rf "$d"' EXIT; tar -x -C "$d"; rm -rf -- "$2/$3"; mv -- "$d/$1" "$2/$3"`
	err := m.pipe(tar, func(r io.Reader) error {
		return m.Exec(ctx, Command{
			Argv:  []string{"/bin/sh", "-c", "mkdir -p \"$2\"; " + script, "copy", filepath.Base(src), path.Dir(dst), path.Base(dst)},
			Stdin: r,
		})
	})
	if err != nil {
		return fmt.Errorf("copy %s to %s of machine %s: %w", src, dst, m.Name, err)
	}
	return nil
}

// pipe runs cmd and gives its output to sink.
func (m *Machine) pipe(cmd *exec.Cmd, sink func(io.Reader) error) error {
	var tail tailBuffer
	cmd.Stderr = &tail
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = sink(out)
	_ = out.Close()
	if werr := cmd.Wait(); werr != nil {
		err = errors.Join(err, fmt.Errorf("%w: %s", werr, tail.String()))
	}
	return err
}

// CopyOut copies a file or directory of the machine to the host; the machine must be on.
func (m *Machine) CopyOut(ctx context.Context, src, dst string) error {
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return fmt.Errorf("copy out: %w", err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dst), ".copy.")
	if err != nil {
		return fmt.Errorf("copy out: %w", err)
	}
	defer os.RemoveAll(tmp)
	untar := exec.CommandContext(ctx, "tar", "-x", "-C", tmp)
	in, err := untar.StdinPipe()
	if err != nil {
		return fmt.Errorf("copy out: %w", err)
	}
	if err := untar.Start(); err != nil {
		return fmt.Errorf("copy out: %w", err)
	}
	err = m.Exec(ctx, Command{Argv: []string{"tar", "-C", path.Dir(src), "-c", "--", path.Base(src)}, Stdout: in})
	err = errors.Join(err, in.Close(), untar.Wait())
	if err == nil {
		err = replace(filepath.Join(tmp, path.Base(src)), dst)
	}
	if err != nil {
		return fmt.Errorf("copy %s of machine %s to %s: %w", src, m.Name, dst, err)
	}
	return nil
}

// replace moves a file or directory over another.
func replace(from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return os.Rename(from, to)
}

// WriteFile writes a file in the machine with the given permission bits, making its directory.
func (m *Machine) WriteFile(ctx context.Context, name string, data []byte, perm fs.FileMode) error {
	script := `set -e; mkdir -p "$1"; umask 077; cat >"$1/.$2.new"; chmod "$3" "$1/.$2.new"; mv "$1/.$2.new" "$1/$2"`
	err := m.Exec(ctx, Command{
		Argv:  []string{"/bin/sh", "-c", script, "write", path.Dir(name), path.Base(name), fmt.Sprintf("%o", perm.Perm())},
		Stdin: bytes.NewReader(data),
	})
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// InstallDeb runs `apt-get install` on a package file of the host, with what it declares
// resolved from the root's offline repository.
func (m *Machine) InstallDeb(ctx context.Context, deb string) error {
	dst := "/var/cache/rig/" + filepath.Base(deb)
	if err := m.CopyIn(ctx, deb, dst); err != nil {
		return err
	}
	var out tailBuffer
	err := m.Exec(ctx, Command{
		Argv:   []string{"apt-get", "install", "-y", "-q", "--allow-downgrades", "--reinstall", "-o", "Dpkg::Options::=--force-unsafe-io", dst},
		Env:    []string{"DEBIAN_FRONTEND=noninteractive"},
		Stdout: &out,
	})
	if err != nil {
		return fmt.Errorf("install %s: %w: %s", deb, err, out.String())
	}
	return nil
}

// Journal returns the journal of this boot (short-precise), restricted to units when given.
func (m *Machine) Journal(ctx context.Context, units ...string) (string, error) {
	argv := []string{"journalctl", "--no-pager", "-b", "-o", "short-precise"}
	for _, u := range units {
		argv = append(argv, "-u", u)
	}
	return m.Run(ctx, argv...)
}

// FollowJournal writes the journal's new lines to w until ctx ends, which is not an
// error; args are journalctl's.
func (m *Machine) FollowJournal(ctx context.Context, w io.Writer, args ...string) error {
	err := m.Exec(ctx, Command{Argv: append([]string{"journalctl", "--no-pager", "-f"}, args...), Stdout: w})
	if ctx.Err() == nil {
		return err
	}
	return nil
}
