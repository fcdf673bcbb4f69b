package systemd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// ErrNotRunning says that a unit has no main process to join.
var ErrNotRunning = errors.New("container is not running")

// ExecError says that the command could not be run in the container.
type ExecError struct {
	Message string
	Code    int // 127 not found, 126 not executable, 128 otherwise
}

func (e *ExecError) Error() string { return e.Message }

// Exec implements Executor. The reader given as Stdin may be read until it ends, even
// after Exec has returned: close it then.
func (m *Manager) Exec(ctx context.Context, req ExecRequest) (int, error) {
	if len(req.Args) == 0 {
		return 0, &ExecError{Message: "exec: no command specified", Code: 128}
	}
	pid, err := m.mainPID(ctx, req.Unit)
	if err != nil {
		return 0, err
	}
	mode := "pipe"
	if req.TTY {
		mode = "tty"
	}
	args := append([]string{"exec", req.LaunchSpec, strconv.Itoa(pid), mode}, req.Args...)
	cmd := exec.CommandContext(ctx, m.opts.Launcher, args...)
	cmd.Env = []string{"GOMAXPROCS=1", "GOGC=off"}
	session := &execSession{m: m, cmd: cmd, unit: req.Unit, pid: pid}
	if m.opts.Labels {
		cmd.Cancel = session.kill
	}
	code, err := session.run(ctx, req)
	if err != nil {
		return 0, fmt.Errorf("exec in unit %s: %w", req.Unit, err)
	}
	return code, nil
}

func (m *Manager) mainPID(ctx context.Context, unit string) (int, error) {
	values, err := m.properties(ctx, unit, [2]string{serviceIface, "MainPID"})
	if gone(err) {
		return 0, fmt.Errorf("unit %s: %w", unit, ErrNotRunning)
	}
	if err != nil {
		return 0, err
	}
	pid := asInt(values[0])
	if pid == 0 {
		return 0, fmt.Errorf("unit %s: %w", unit, ErrNotRunning)
	}
	return pid, nil
}

// execSession is one run of `vk-metal-launch exec`.
type execSession struct {
	m       *Manager
	cmd     *exec.Cmd
	unit    string
	pid     int
	control *os.File

	mu      sync.Mutex
	command *os.Process // where Options.Labels says so
}

// hold keeps the command's process, which waits to be released: its PID is nobody else's yet.
func (s *execSession) hold(pid int) error {
	if !s.m.opts.Labels {
		return nil
	}
	process, err := os.FindProcess(pid)
	if err != nil {
		return fmt.Errorf("hold command: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.command = process
	return nil
}

// kill ends the command with its launcher.
func (s *execSession) kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.command != nil {
		_ = s.command.Kill() //nolint:errcheck // it has ended already
	}
	return s.cmd.Process.Kill()
}

// letGo ends what hold began.
func (s *execSession) letGo() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.command != nil {
		_ = s.command.Release() //nolint:errcheck // closes a descriptor
		s.command = nil
	}
}

func (s *execSession) run(ctx context.Context, req ExecRequest) (int, error) {
	streams, err := openStreams(req)
	if err != nil {
		return 0, err
	}
	defer streams.close()
	streams.give(s.cmd)
	theirs, err := s.openControl()
	if err != nil {
		return 0, err
	}
	defer s.control.Close()
	defer s.letGo()
	err = s.cmd.Start()
	theirs.Close()
	streams.closeTheirs()
	if err != nil {
		return 0, fmt.Errorf("start launcher: %w", err)
	}
	startErr := s.attend(ctx, streams, req)
	if startErr == nil {
		streams.copy(req)
	} else {
		s.control.Close() // it ends with us
	}
	waitErr := s.cmd.Wait()
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if startErr != nil {
		return 0, startErr
	}
	streams.drain()
	var status *exec.ExitError
	if waitErr != nil && !errors.As(waitErr, &status) {
		return 0, fmt.Errorf("wait for command: %w", waitErr)
	}
	return s.cmd.ProcessState.ExitCode(), nil
}

func (s *execSession) openControl() (theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	if err := unix.SetNonblock(fds[1], false); err != nil {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	s.control = os.NewFile(uintptr(fds[0]), "exec control")
	theirs = os.NewFile(uintptr(fds[1]), "exec control")
	s.cmd.ExtraFiles = []*os.File{theirs}
	return theirs, nil
}

// attend follows the launcher's messages until the command runs.
func (s *execSession) attend(ctx context.Context, streams *execStreams, req ExecRequest) error {
	for {
		message, terminal, err := s.receive()
		switch {
		case err != nil:
			return fmt.Errorf("read from launcher: %w", err)
		case message.Error != nil:
			return &ExecError{Message: message.Error.Message, Code: message.Error.Code}
		case message.Started && req.TTY && streams.master == nil:
			return errors.New("command has no terminal")
		case message.Started:
			return nil
		case terminal >= 0:
			if err := streams.useTerminal(terminal, req.Resize); err != nil {
				return err
			}
			if err := s.release(); err != nil {
				return err
			}
			continue
		}
		if err := s.hold(message.PID); err != nil {
			return err
		}
		if err := s.admit(ctx, message.PID); err != nil {
			return err
		}
	}
}

// receive returns a message and the descriptor that came with it, -1 for none.
func (s *execSession) receive() (message launchspec.ExecMessage, fd int, err error) {
	raw, err := s.control.SyscallConn()
	if err != nil {
		return message, -1, err
	}
	buf, rights := make([]byte, 256<<10), make([]byte, unix.CmsgSpace(4))
	var n, oob int
	var failure error
	err = raw.Read(func(fd uintptr) bool {
		n, oob, _, _, failure = unix.Recvmsg(int(fd), buf, rights, unix.MSG_CMSG_CLOEXEC)
		return failure != unix.EAGAIN && failure != unix.EINTR
	})
	if err = errors.Join(err, failure); err != nil {
		return message, -1, err
	}
	if n == 0 {
		return message, -1, io.EOF
	}
	return message, passedFD(rights[:oob]), json.Unmarshal(buf[:n], &message)
}

func passedFD(rights []byte) int {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) == 0 {
		return -1
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return -1
	}
	return fds[0]
}

func (s *execSession) release() error {
	if _, err := s.control.Write([]byte{'g'}); err != nil {
		return fmt.Errorf("release process: %w", err)
	}
	return nil
}

// admit puts the process into the unit's cgroups. The unit's main process being the same
// after that proves that the namespaces opened before are this container's.
func (s *execSession) admit(ctx context.Context, pid int) error {
	err := s.attach(ctx, pid, "")
	if isBusError(err, errBusy) {
		err = s.attachBesideMain(ctx, pid)
	}
	if err != nil {
		return fmt.Errorf("attach process to cgroups: %w", errors.Join(err, s.stillRunning(ctx)))
	}
	if err := s.stillRunning(ctx); err != nil {
		return err
	}
	return s.release()
}

// attach moves the process into the unit's cgroup, or one below it.
func (s *execSession) attach(ctx context.Context, pid int, below string) error {
	_, err := s.m.call(ctx, "AttachProcessesToUnit", s.unit, below, []uint32{uint32(pid)})
	return err
}

// attachBesideMain moves the process to where the main one is. On cgroup v2 a group whose
// controllers have been given to groups below it takes no processes (cgroups(7), "no internal
// processes"): so it is with privileged containers that manage cgroups, such as Docker in Docker.
func (s *execSession) attachBesideMain(ctx context.Context, pid int) error {
	group, err := s.m.controlGroup(ctx, s.unit)
	if err != nil {
		return err
	}
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", s.pid))
	if err != nil {
		return fmt.Errorf("find the main process's cgroup: %w", err)
	}
	below, ok := groupBelow(string(table), group)
	if !ok {
		return fmt.Errorf("the main process has left its unit's cgroup %s", group)
	}
	return s.attach(ctx, pid, below)
}

// groupBelow is where the unified hierarchy has a process, as /proc/PID/cgroup tells, relative
// to a group above it.
func groupBelow(table, group string) (below string, ok bool) {
	for line := range strings.Lines(table) {
		if path, unified := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); unified {
			below, ok = strings.CutPrefix(path, group)
			return below, ok && strings.HasPrefix(below, "/")
		}
	}
	return "", false
}

func (s *execSession) stillRunning(ctx context.Context) error {
	pid, err := s.m.mainPID(ctx, s.unit)
	if err == nil && pid != s.pid {
		err = ErrNotRunning
	}
	return err
}

// orDiscard stands in for a writer that nobody gave.
func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}
