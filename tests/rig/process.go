package rig

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ProcessSpec is a program to run in the background of the rig. It gets a session
// of its own, /dev/null as stdin, and a cgroup of its own.
type ProcessSpec struct {
	// Name is unique in the rig: letters, digits, "-" and ".".
	Name string
	// Argv is the command line; Argv[0] is looked up in PATH unless it has a slash.
	Argv []string
	// Path is the executable when it is not Argv[0] (multi-call binaries).
	Path string
	// Env is the whole environment; nil means PATH, HOME and LANG only.
	Env []string
	// Dir is the working directory; "" is the rig's directory.
	Dir string
	// Endpoint names the namespace to run in; "" is the host's.
	Endpoint string
}

// processRecord is a process as the state keeps it: a pid means nothing without the
// time at which the process started and the boot.
type processRecord struct {
	Name   string `json:"name"`
	PID    int    `json:"pid"`
	Start  uint64 `json:"start"`
	BootID string `json:"bootID"`
}

// Process is a background process of the rig.
type Process struct {
	Name string
	PID  int
	// LogPath has stdout and stderr, appended over restarts.
	LogPath string

	rig    *Rig
	record processRecord
}

// ErrRunning is returned (wrapped) when a process of that name runs already.
var ErrRunning = errors.New("is running already")

// processName is what a process, endpoint or machine may be called.
var processName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?$`)

// defaultEnv is what programs get that are given no environment.
var defaultEnv = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}

// StartProcess starts a process that outlives the caller. It fails with ErrRunning when
// one of that name runs already; one that has exited is replaced.
func (r *Rig) StartProcess(_ context.Context, spec ProcessSpec) (*Process, error) {
	es, err := r.execSpecOf(spec)
	if err != nil {
		return nil, fmt.Errorf("start process %s: %w", spec.Name, err)
	}
	var p *Process
	err = r.update(func(s *state) error {
		i := slices.IndexFunc(s.Processes, func(o processRecord) bool { return o.Name == spec.Name })
		if i >= 0 && r.process(s.Processes[i]).Running() {
			return fmt.Errorf("process %s %w", spec.Name, ErrRunning)
		}
		rec, err := r.launch(spec.Name, es)
		if err != nil {
			return err
		}
		if i >= 0 {
			s.Processes = slices.Delete(s.Processes, i, i+1)
		}
		s.Processes = append(s.Processes, rec)
		p = r.process(rec)
		return nil
	})
	return p, err
}

// execSpecOf resolves what a spec leaves to defaults.
func (r *Rig) execSpecOf(spec ProcessSpec) (execSpec, error) {
	if !processName.MatchString(spec.Name) || len(spec.Argv) == 0 {
		return execSpec{}, fmt.Errorf("name %q or command %q is not valid", spec.Name, spec.Argv)
	}
	es := execSpec{Dir: spec.Dir, Path: spec.Path, Argv: spec.Argv, Env: spec.Env}
	if es.Dir == "" {
		es.Dir = r.dir
	}
	if es.Env == nil {
		es.Env = defaultEnv
	}
	if es.Path == "" {
		es.Path = spec.Argv[0]
	}
	path, err := exec.LookPath(es.Path)
	if err != nil {
		return es, err
	}
	es.Path = path
	if spec.Endpoint != "" {
		e, err := r.Endpoint(spec.Endpoint)
		if err != nil {
			return es, err
		}
		es.Netns = e.NetnsPath
	}
	return es, nil
}

// launch starts the process in its cgroup, its output going to its log.
func (r *Rig) launch(name string, es execSpec) (processRecord, error) {
	group := "process-" + name
	cgroups, err := makeCgroup(r.id, group)
	if err != nil {
		return processRecord{}, err
	}
	es.Cgroups = cgroups
	log, err := openLog(r.processLog(name))
	if err != nil {
		return processRecord{}, err
	}
	defer log.Close()
	cmd, err := startExec(es, log, log)
	if err != nil {
		return processRecord{}, err
	}
	start, _, _ := procStat(cmd.Process.Pid)
	go func() { _ = cmd.Wait() }() // reap, if this program lives that long
	return processRecord{Name: name, PID: cmd.Process.Pid, Start: start, BootID: hostBootID()}, nil
}

// tool runs a program to its end in a cgroup of the rig: should this program be killed
// meanwhile, Down finds the tool.
func (r *Rig) tool(ctx context.Context, name string, argv ...string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	cgroups, err := makeCgroup(r.id, "tool-"+name)
	if err != nil {
		return err
	}
	log, err := openLog(r.processLog(name))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd, err := startExec(execSpec{Cgroups: cgroups, Dir: "/", Path: path, Argv: argv, Env: defaultEnv}, log, log)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })()
	if err := errors.Join(cmd.Wait(), ctx.Err()); err != nil {
		return fmt.Errorf("run %q (see %s): %w", argv, log.Name(), err)
	}
	_ = os.Remove(log.Name()) // it has nothing to say
	return killCgroup(ctx, r.id, "tool-"+name)
}

// processLog is where a process's output goes.
func (r *Rig) processLog(name string) string {
	return filepath.Join(r.dir, "logs", name+".log")
}

// openLog opens a log for appending and makes its directory.
func openLog(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return f, nil
}

// process makes a handle.
func (r *Rig) process(rec processRecord) *Process {
	return &Process{Name: rec.Name, PID: rec.PID, LogPath: r.processLog(rec.Name), rig: r, record: rec}
}

// Process finds a process by name, running or not; ErrNotFound when never started.
func (r *Rig) Process(name string) (*Process, error) {
	ps, err := r.Processes()
	if err != nil {
		return nil, err
	}
	for _, p := range ps {
		if p.Name == name {
			return p, nil
		}
	}
	return nil, fmt.Errorf("find process %q: %w", name, ErrNotFound)
}

// Processes lists all processes ever started in the rig.
func (r *Rig) Processes() ([]*Process, error) {
	s, err := readState(r.dir)
	if err != nil {
		return nil, err
	}
	ps := make([]*Process, 0, len(s.Processes))
	for _, rec := range s.Processes {
		ps = append(ps, r.process(rec))
	}
	return ps, nil
}

// Running reports whether that very process (not another with its pid) still runs.
func (p *Process) Running() bool {
	start, zombie, err := procStat(p.PID)
	return err == nil && !zombie && start == p.record.Start && p.record.BootID == hostBootID()
}

// Wait blocks until the process has gone.
func (p *Process) Wait(ctx context.Context) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for process %s: %w", p.Name, err)
	}
	defer unix.Close(fd)
	if !p.Running() { // the pid is another's by now
		return nil
	}
	if err := waitReadable(ctx, fd); err != nil {
		return fmt.Errorf("wait for process %s: %w", p.Name, err)
	}
	return nil
}

// waitReadable blocks until fd is readable (a pidfd: until the process has ended).
func waitReadable(ctx context.Context, fd int) error {
	return poll(ctx, time.Millisecond, func() (bool, error) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200)
		if errors.Is(err, unix.EINTR) {
			return false, nil
		}
		return n > 0, err
	})
}

// Stop sends SIGTERM, and SIGKILL to all of the process's cgroup after grace; it
// returns when all are gone. A process that has gone is not an error.
func (p *Process) Stop(ctx context.Context, grace time.Duration) error {
	if p.Running() {
		_ = unix.Kill(p.PID, unix.SIGTERM) // gone meanwhile is as good
		wctx, cancel := context.WithTimeout(ctx, grace)
		defer cancel()
		if err := p.Wait(wctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("stop: %w", err)
		}
	}
	return p.Kill(ctx)
}

// Kill sends SIGKILL to the process and everything it started, and waits for their end.
func (p *Process) Kill(ctx context.Context) error {
	if err := killCgroup(ctx, p.rig.id, "process-"+p.Name); err != nil {
		return fmt.Errorf("kill process %s: %w", p.Name, err)
	}
	return nil
}

// procStat reads a process's start time in clock ticks after boot and whether it is a zombie.
func procStat(pid int) (start uint64, zombie bool, err error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, false, fmt.Errorf("read state of process %d: %w", pid, err)
	}
	// The command name, in parentheses, may hold anything: count from its end.
	rest := string(b[strings.LastIndexByte(string(b), ')')+1:])
	f := strings.Fields(rest)
	if len(f) < 20 {
		return 0, false, fmt.Errorf("read state of process %d: %w", pid, fs.ErrInvalid)
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return start, f[0] == "Z" || f[0] == "X", err
}

// isZombie reports whether a process has ended and waits to be reaped.
func isZombie(pid int) bool {
	_, zombie, err := procStat(pid)
	return err != nil || zombie
}
