package systemd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// sleeper is a container that runs until it is removed.
func (m *machine) sleeper(change func(*attempt)) *attempt {
	m.t.Helper()
	a := m.attempt("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done")
	if change != nil {
		change(a)
	}
	a.mustStart()
	return a
}

// exec runs a command and returns its exit code and both outputs.
func (a *attempt) exec(stdin io.Reader, args ...string) (int, string, string, error) {
	var out, errs bytes.Buffer
	code, err := a.m.manager.Exec(a.m.ctx, ExecRequest{
		Unit: a.unit.Name, LaunchSpec: a.unit.LaunchSpec, Args: args, Stdin: stdin, Stdout: &out, Stderr: &errs,
	})
	return code, out.String(), errs.String(), err
}

func (a *attempt) mustExec(args ...string) string {
	a.m.t.Helper()
	code, out, errs, err := a.exec(nil, args...)
	if err != nil || code != 0 {
		a.m.t.Fatalf("exec %q: code %d, stderr %q, error %v", args, code, errs, err)
	}
	return out
}

func TestMachineExec(t *testing.T) {
	m := newMachine(t)
	a := m.sleeper(func(a *attempt) { a.spec.Env = bytesOf("PATH=/bin", "COLOUR=blue") })

	t.Run("sees the container", func(t *testing.T) {
		got := a.mustExec("sh", "-c", "hostname; echo $COLOUR; cat /proc/1/cmdline | tr '\\0' ' '; id -u; pwd; ls /")
		want := "box\nblue\nsh -c trap"
		if !strings.HasPrefix(got, want) {
			t.Errorf("output %q, want it to begin with %q", got, want)
		}
	})
	t.Run("same namespaces, capabilities and cgroups as pid 1", func(t *testing.T) {
		for _, script := range []string{
			"for n in mnt pid uts ipc net cgroup; do readlink /proc/PID/ns/$n; done",
			"grep -e Cap -e Seccomp: -e NoNewPrivs -e Groups /proc/PID/status",
			"cat /proc/PID/cgroup",
		} {
			own := a.mustExec("sh", "-c", strings.ReplaceAll(script, "PID", "self"))
			init := a.mustExec("sh", "-c", strings.ReplaceAll(script, "PID", "1"))
			if own != init || own == "" {
				t.Errorf("%s: exec has %q, pid 1 has %q", script, own, init)
			}
		}
	})
	t.Run("exit code and both streams", func(t *testing.T) {
		code, out, errs, err := a.exec(nil, "sh", "-c", "echo out; echo err >&2; exit 7")
		if code != 7 || out != "out\n" || errs != "err\n" || err != nil {
			t.Errorf("code %d, stdout %q, stderr %q, error %v", code, out, errs, err)
		}
	})
	t.Run("stdin to its end", func(t *testing.T) {
		data := strings.Repeat("0123456789abcdef", 100_000)
		code, out, _, err := a.exec(strings.NewReader(data), "cat")
		if code != 0 || out != data || err != nil {
			t.Errorf("code %d, %d bytes of %d, error %v", code, len(out), len(data), err)
		}
	})
	t.Run("killed by a signal", func(t *testing.T) {
		code, _, _, err := a.exec(nil, "sh", "-c", "kill -9 $$")
		if code != 137 || err != nil {
			t.Errorf("code %d, error %v", code, err)
		}
	})
	t.Run("missing command", func(t *testing.T) {
		_, _, _, err := a.exec(nil, "nothing-there")
		var failure *ExecError
		if !errors.As(err, &failure) || failure.Code != 127 || !strings.Contains(failure.Message, "executable file not found in $PATH") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("arguments are exact", func(t *testing.T) {
		args := []string{"printf", "%s|", "a b", "$HOME %n", "new\nline", `quote"s'`, "\xff\xfe", ""}
		if got, want := a.mustExec(args...), strings.Join(args[2:], "|")+"|"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("terminal", func(t *testing.T) { testTerminal(t, a) })
	t.Run("context ends it", func(t *testing.T) { testExecCancel(t, a) })
	t.Run("the container's end ends it", func(t *testing.T) { testExecEnds(t, a) })
}

// TestMachineExecBesideGroups: a privileged container has moved its processes out of its own
// cgroup and divides that, as Docker in Docker does; commands join them.
func TestMachineExecBesideGroups(t *testing.T) {
	m := newMachine(t)
	if m.manager.cgroup != cgroupV2 {
		t.Skip("on cgroup v1 a divided group takes processes")
	}
	a := m.attempt("sh", "-c", `cd /sys/fs/cgroup && mkdir init && echo 1 >init/cgroup.procs && echo "+memory +pids" >cgroup.subtree_control && touch /ready
while :; do sleep 1000; done`)
	a.spec.Privileged, a.unit.AllDevices = true, true
	a.mustStart()
	m.eventually("the container divides its cgroup", func() bool {
		_, err := os.Stat(filepath.Join(a.spec.Root.Upper, "ready"))
		return err == nil
	})
	if got := a.mustExec("cat", "/proc/1/cgroup", "/proc/self/cgroup"); got != "0::/init\n0::/init\n" {
		t.Errorf("cgroups of pid 1 and of the command are %q", got)
	}
	m.must(m.manager.Signal(m.ctx, a.unit.Name, syscall.SIGKILL, true))
	if exit := a.exit(); exit.Signal != int(syscall.SIGKILL) || exit.OOMKilled {
		t.Errorf("it ended as %+v", exit)
	}
}

func testTerminal(t *testing.T, a *attempt) {
	var out bytes.Buffer
	sizes := make(chan TermSize, 1)
	sizes <- TermSize{Width: 123, Height: 45}
	code, err := a.m.manager.Exec(a.m.ctx, ExecRequest{
		Unit: a.unit.Name, LaunchSpec: a.unit.LaunchSpec, TTY: true, Resize: sizes, Stdout: &out,
		Stdin: strings.NewReader("answer\n"),
		Args:  []string{"sh", "-c", "until [ \"$(stty size)\" = '45 123' ]; do usleep 10000; done; test -t 0 && read x && echo got $x $TERM on $(tty); exit 3"},
	})
	if code != 3 || err != nil || !strings.Contains(out.String(), "got answer xterm on /dev/pts/0\r\n") {
		t.Errorf("code %d, output %q, error %v", code, out.String(), err)
	}
}

func testExecCancel(t *testing.T, a *attempt) {
	ctx, cancel := context.WithTimeout(a.m.ctx, 200*time.Millisecond)
	defer cancel()
	_, err := a.m.manager.Exec(ctx, ExecRequest{
		Unit: a.unit.Name, LaunchSpec: a.unit.LaunchSpec, Args: []string{"sleep", "54321"},
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	a.m.eventually("the command is gone", func() bool {
		return !strings.Contains(a.mustExec("ps"), "54321")
	})
}

func testExecEnds(t *testing.T, a *attempt) {
	done := make(chan int, 1)
	started := make(chan struct{})
	go func() {
		code, _ := a.m.manager.Exec(a.m.ctx, ExecRequest{
			Unit: a.unit.Name, LaunchSpec: a.unit.LaunchSpec, Args: []string{"sh", "-c", "echo; sleep 1000"},
			Stdout: writerFunc(func(p []byte) (int, error) { close(started); return len(p), nil }),
		})
		done <- code
	}()
	<-started
	if err := a.m.manager.Remove(a.m.ctx, a.unit.Name); err != nil {
		t.Fatal(err)
	}
	if code := <-done; code != 137 {
		t.Errorf("code %d, want 137", code)
	}
	if _, _, _, err := a.exec(nil, "true"); !errors.Is(err, ErrNotRunning) {
		t.Errorf("exec after the end: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
