package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// shutdownTimeout bounds a clean shutdown before the supervisor pulls the plug.
const shutdownTimeout = 90 * time.Second

// hardware is what a supervisor powers: a container or a virtual machine.
type hardware interface {
	// boot powers it on and reports by events; it returns once the boot has ended, true
	// when it ended in a reboot.
	boot(ctx context.Context, ev bootEvents) (reboot bool, err error)
	// signal asks the running system for a clean end.
	signal(how shutdown) error
	// kill ends the running boot at once.
	kill() error
}

// bootEvents are how hardware reports its progress; each may be called from any goroutine.
type bootEvents struct {
	leader func(pid int)
	ready  func()
}

// shutdown is a way to end a boot cleanly.
type shutdown int

const (
	powerOff shutdown = iota
	restart
)

// hardware is what the supervisor powers.
func (m *Machine) hardware() hardware {
	if m.record.VM {
		return &qemu{m: m}
	}
	return &nspawn{m: m}
}

// payloadGroup is the machine's cgroup; the machine has all below it to itself.
func (m *Machine) payloadGroup() string { return "payload-" + m.Name }

// unplug removes the machine's port from the rack, if it is still there.
func (m *Machine) unplug() error {
	s, err := readState(m.rig.dir)
	if err != nil {
		return err
	}
	return m.withPort(s, deleteLink)
}

// supervisor owns one machine's power. It lives as long as the machine's rig.
type supervisor struct {
	hw  hardware
	log *slog.Logger

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change
	state   MachineState
	boot    int
	leader  int
	lastErr error
}

// superviseMain is the supervisor process: arguments are the rig's directory and the machine.
func superviseMain(args []string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("machine", args[1])
	r, err := Open(args[0])
	if err == nil {
		err = r.supervise(args[1], log)
	}
	log.Error("supervisor ends", "error", err)
	return 1
}

// supervise serves the machine's control socket for ever.
func (r *Rig) supervise(name string, log *slog.Logger) error {
	m, err := r.Machine(name)
	if err != nil {
		return err
	}
	dir, err := os.Open(r.machineDir(name))
	if err != nil {
		return fmt.Errorf("open machine directory: %w", err)
	}
	defer dir.Close()
	_ = os.Remove(filepath.Join(dir.Name(), controlSocket)) // a dead supervisor's
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", shortSocket(dir, controlSocket))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s := &supervisor{hw: m.hardware(), log: log, state: MachineOff, changed: make(chan struct{})}
	for {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go s.serve(conn)
	}
}

// serve handles one request; the client hanging up ends its context.
func (s *supervisor) serve(conn net.Conn) {
	defer conn.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var req request
	if err := json.NewDecoder(conn).Decode(&req); err != nil {
		s.log.Warn("read request", "error", err)
		return
	}
	go func() {
		_, _ = io.Copy(io.Discard, conn) // ends when the client hangs up
		cancel()
	}()
	err := s.do(ctx, req.Op)
	rep := s.status()
	if err != nil {
		rep.Error = err.Error()
	}
	s.log.Info("request", "op", req.Op, "state", rep.State, "boot", rep.Boot, "error", rep.Error)
	_ = json.NewEncoder(conn).Encode(rep) // the client may have gone
}

// do runs an operation.
func (s *supervisor) do(ctx context.Context, op string) error {
	switch op {
	case opStatus:
		return nil
	case opStart:
		return s.start(ctx)
	case opWaitBooted:
		return s.waitFor(ctx, func(st MachineState, _ int) bool { return st != MachineBooting }, MachineUp)
	case opStop:
		return s.end(ctx, powerOff)
	case opReboot:
		return s.end(ctx, restart)
	case opPowerCut:
		if s.status().State == MachineOff {
			return nil
		}
		if err := s.hw.kill(); err != nil {
			return err
		}
		return s.waitFor(ctx, func(st MachineState, _ int) bool { return st == MachineOff }, MachineOff)
	}
	return fmt.Errorf("operation %q is not known", op)
}

// start powers on and returns when PID 1 runs, or the boot has failed.
func (s *supervisor) start(ctx context.Context) error {
	s.mu.Lock()
	if s.state == MachineOff {
		s.set(func() { s.state, s.lastErr = MachineBooting, nil })
		go s.run()
	}
	s.mu.Unlock()
	return s.waitUntil(ctx, func() (bool, error) {
		if s.state == MachineOff {
			return true, errors.Join(errors.New("the machine went off"), s.lastErr)
		}
		return s.leader != 0, nil
	})
}

// run boots until a boot does not end in a reboot.
func (s *supervisor) run() {
	for again := true; again; {
		s.mu.Lock()
		s.set(func() { s.state, s.leader = MachineBooting, 0; s.boot++ })
		s.mu.Unlock()
		var err error
		again, err = s.hw.boot(context.Background(), bootEvents{
			leader: func(pid int) { s.lockedSet(func() { s.leader = pid }) },
			ready:  func() { s.lockedSet(func() { s.state = MachineUp }) },
		})
		s.log.Info("boot ended", "boot", s.status().Boot, "reboot", again, "error", err)
		s.lockedSet(func() { s.lastErr = err })
	}
	s.lockedSet(func() { s.state, s.leader = MachineOff, 0 })
}

// end asks for a clean end and waits for it; after shutdownTimeout it pulls the plug.
func (s *supervisor) end(ctx context.Context, how shutdown) error {
	before := s.status()
	if before.State == MachineOff {
		if how == restart {
			return errors.New("the machine is off")
		}
		return nil
	}
	if err := s.hw.signal(how); err != nil {
		return err
	}
	want := MachineOff
	if how == restart {
		want = MachineBooting
	}
	tctx, cancel := context.WithTimeout(ctx, shutdownTimeout)
	defer cancel()
	err := s.waitFor(tctx, func(st MachineState, boot int) bool {
		return st == MachineOff || boot > before.Boot
	}, want)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return errors.Join(fmt.Errorf("the machine did not shut down in %s and was killed", shutdownTimeout), s.hw.kill())
	}
	return err
}

// waitFor waits until done, and fails when the state then is not the wanted one (one
// further along than booting is good for booting).
func (s *supervisor) waitFor(ctx context.Context, done func(MachineState, int) bool, want MachineState) error {
	return s.waitUntil(ctx, func() (bool, error) {
		if !done(s.state, s.boot) {
			return false, nil
		}
		if s.state == want || (want == MachineBooting && s.state == MachineUp) {
			return true, nil
		}
		return true, errors.Join(fmt.Errorf("the machine is %s", s.state), s.lastErr)
	})
}

// waitUntil calls done under the lock at every change until it says so.
func (s *supervisor) waitUntil(ctx context.Context, done func() (bool, error)) error {
	for {
		s.mu.Lock()
		ok, err := done()
		ch := s.changed
		s.mu.Unlock()
		if ok {
			return err
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// set changes fields under the lock, which the caller holds, and wakes the waiting.
func (s *supervisor) set(change func()) {
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

// lockedSet is set for callers without the lock.
func (s *supervisor) lockedSet(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(change)
}

// status is the state now.
func (s *supervisor) status() reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	return reply{State: s.state, Boot: s.boot, Leader: s.leader}
}
