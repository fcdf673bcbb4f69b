//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// stageExecChild is the second stage of exec: in the container's PID namespace, not yet
// in the others.
const stageExecChild = "exec-child"

// Descriptors that exec's processes get. The agent's is a SOCK_SEQPACKET socket: we send
// launchspec.ExecMessage, it answers one byte once the process is in the unit's cgroups.
const (
	agentFD = 3
	pidFD   = 4
)

// execRequest is the command line SPEC PID tty|pipe ARGS…
type execRequest struct {
	spec    *launchspec.Spec
	process launchspec.Process
	pid     int
	tty     bool
	args    []string
}

func parseExec(args []string) (*execRequest, error) {
	if len(args) < 4 {
		return nil, errors.New("exec: want SPEC PID tty|pipe ARGS")
	}
	spec, err := loadSpec(args[0])
	if err != nil {
		return nil, err
	}
	r := &execRequest{spec: spec, tty: args[2] == "tty", args: args[3:]}
	if r.pid, err = strconv.Atoi(args[1]); err != nil || r.pid <= 0 {
		return nil, fmt.Errorf("exec: %q is not a process", args[1])
	}
	if !readJSON(processPath(args[0]), &r.process) {
		return nil, fmt.Errorf("exec: container %q has not started", spec.Container)
	}
	return r, nil
}

// loadExec is parseExec for the second stage.
func loadExec(args []string) (*execRequest, error) {
	if len(args) != 1 || args[0] != handoffArg {
		return parseExec(args)
	}
	h, err := unpack()
	if err != nil {
		return nil, err
	}
	return &execRequest{spec: h.Spec, process: h.Process, tty: h.TTY, args: stringsOf(h.Args)}, nil
}

// execMain starts one more process in a running container and lends it its exit code. It
// stays outside of the container itself; when the agent goes, so do we, and with us the
// process (PR_SET_PDEATHSIG, which the kernel forgets where the label changes: see orphaned).
func execMain(args []string) int {
	unix.CloseOnExec(agentFD)
	agent := channel{fd: agentFD}
	request, err := parseExec(args)
	pid := 0
	if err == nil {
		pid, err = request.start(args, agent)
	}
	if err != nil {
		_ = agent.sendJSON(launchspec.ExecMessage{Error: toStartError(err)})
		return exitOther
	}
	go func() {
		if _, err := agent.receiveBytes(); err != nil {
			request.orphaned(pid)
			os.Exit(exitOther)
		}
	}()
	return waitFor(pid)
}

// start starts the process and returns its PID once it has become the command.
func (r *execRequest) start(args []string, agent channel) (int, error) {
	restoreOpenFiles()
	if err := setRlimits(r.process.Rlimits); err != nil {
		return 0, err
	}
	pidfd, err := unix.PidfdOpen(r.pid, 0)
	if err != nil {
		return 0, fmt.Errorf("open container process %d: %w", r.pid, err)
	}
	defer unix.Close(pidfd)
	parent, childEnd, err := newChannels()
	if err != nil {
		return 0, err
	}
	clone := r.clone
	if r.spec.Namespaces.User != nil {
		clone = r.cloneMapped
	}
	pid, err := clone(pidfd, childEnd.fd, args)
	unix.Close(childEnd.fd)
	if err != nil {
		return 0, fmt.Errorf("clone process: %w", err)
	}
	return pid, execAttend(pid, parent, agent)
}

// clone starts the second stage in the PID namespace of the container.
func (r *execRequest) clone(pidfd, channel int, args []string) (int, error) {
	self, err := readonlySelf()
	if err != nil {
		return 0, err
	}
	if err := unix.Setns(pidfd, unix.CLONE_NEWPID); err != nil {
		return 0, fmt.Errorf("join PID namespace of process %d: %w", r.pid, err)
	}
	return syscall.ForkExec(descriptorPath(self), append([]string{"vk-metal-launch", stageExecChild}, args...), &syscall.ProcAttr{
		Env:   []string{"GOMAXPROCS=1", "GOGC=off"},
		Files: []uintptr{0, 1, 2, uintptr(channel), uintptr(pidfd)},
	})
}

// cloneMapped starts it in the container's user namespace as well.
func (r *execRequest) cloneMapped(pidfd, channel int, _ []string) (int, error) {
	self, err := readonlySelf()
	if err != nil {
		return 0, err
	}
	high, err := unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, firstHeld)
	if err != nil {
		return 0, fmt.Errorf("hold container process: %w", err)
	}
	if !r.tty {
		if err := ownStdio(firstID(r.spec) + r.process.UID); err != nil {
			return 0, err
		}
	}
	ready := &handoff{Spec: r.spec, Root: -1, Dev: -1, Streams: [3]int{-1, -1, -1}, Process: r.process, TTY: r.tty}
	for _, arg := range r.args {
		ready.Args = append(ready.Args, []byte(arg))
	}
	b := birth{
		joins: [2]join{{high, unix.CLONE_NEWUSER | unix.CLONE_NEWPID}, {-1, 0}},
		fds:   [3]int{channel, high, -1},
		self:  self,
	}
	return b.bearWith(ready, stageExecChild)
}

// execAttend has the agent put the process into the container's cgroups, lets it go, hands
// its terminal on, and waits until it has become the command.
func execAttend(pid int, child, agent channel) error {
	if err := agent.sendJSON(launchspec.ExecMessage{PID: pid}); err != nil {
		return fmt.Errorf("report process: %w", err)
	}
	if err := agent.wait(); err != nil {
		return err
	}
	if err := child.release(); err != nil {
		return fmt.Errorf("release process: %w", err)
	}
	for {
		message, err := child.receive()
		switch {
		case errors.Is(err, io.EOF):
			return agent.sendJSON(launchspec.ExecMessage{Started: true})
		case err != nil:
			return err
		case message.Error != nil:
			_ = child.release()
			return agent.sendJSON(launchspec.ExecMessage{Error: message.Error})
		case !message.Terminal || message.fd < 0:
			return errors.New("process sent a message that makes no sense")
		}
		if err := passTerminal(message.fd, agent); err != nil {
			return err
		}
		if err := child.release(); err != nil {
			return fmt.Errorf("release process: %w", err)
		}
	}
}

// passTerminal gives the master to the agent alone and waits until it has set its size.
func passTerminal(master int, agent channel) error {
	err := agent.sendFD(launchspec.ExecMessage{Terminal: true}, master)
	unix.Close(master)
	if err != nil {
		return fmt.Errorf("pass terminal: %w", err)
	}
	return agent.wait()
}

func waitFor(pid int) int {
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return exitOther
		case status.Signaled():
			return 128 + int(status.Signal())
		}
		return status.ExitStatus()
	}
}

// execChild joins the container and becomes the command.
func execChild(args []string) int {
	unix.CloseOnExec(childFD)
	unix.CloseOnExec(pidFD)
	ch := channel{fd: childFD}
	err := execJoin(args, ch)
	if errors.Is(err, errLauncherGone) {
		return exitOther
	}
	failure := toStartError(err)
	if ch.send(childMessage{Error: failure}) == nil {
		_ = ch.wait()
	}
	return failure.Code
}

func execJoin(args []string, ch channel) error {
	request, err := loadExec(args)
	if err != nil {
		return err
	}
	if err := hideSelf(request.spec); err != nil {
		return err
	}
	if err := ch.wait(); err != nil {
		return errLauncherGone
	}
	lsm, err := openLSM(request.spec)
	if err != nil {
		return err
	}
	// A mount namespace is joined by a process that shares its root with nobody.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare root: %w", err)
	}
	const all = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP
	if err := unix.Setns(pidFD, all); err != nil {
		return fmt.Errorf("join namespaces of the container: %w", err)
	}
	u := &user{UID: request.process.UID, GID: request.process.GID, Groups: request.process.Groups, Home: request.process.Home}
	if request.tty {
		if err := ownTerminal(ch); err != nil {
			return err
		}
	}
	if request.tty || request.spec.Namespaces.User == nil { // else the launcher did it
		if err := ownStdio(u.UID); err != nil {
			return err
		}
	}
	return become(request.command(), u, lsm, true)
}

// command is the container's spec with the request's command in it.
func (r *execRequest) command() *launchspec.Spec {
	spec := *r.spec
	spec.TTY = r.tty
	spec.Args = make([][]byte, len(r.args))
	for i, arg := range r.args {
		spec.Args[i] = []byte(arg)
	}
	return &spec
}

// ownStdio gives pipes and terminals to the user, so that /dev/stdout can be opened again.
func ownStdio(user uint32) error {
	for fd := range 3 {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return fmt.Errorf("look at stream %d: %w", fd, err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3) {
			continue // /dev/null stays as it is
		}
		if err := giveStream(fd, user); err != nil {
			return err
		}
	}
	return nil
}
