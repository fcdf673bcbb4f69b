package systemd

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func (m *machine) command(name string, args ...string) {
	m.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		m.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// waitEvent reads events until one fits.
func (m *machine) waitEvent(events <-chan Event, what string, fits func(Event) bool) {
	m.t.Helper()
	limit := patience(2 * time.Minute)
	timeout := time.After(limit)
	for {
		select {
		case event := <-events:
			if fits(event) {
				return
			}
		case <-timeout:
			m.t.Fatalf("no event within %s: %s", limit, what)
		}
	}
}

func TestMachineEvents(t *testing.T) {
	m := newMachine(t)
	other, err := NewManager(m.ctx, m.manager.opts)
	m.must(err)
	a := m.sleeper(nil)
	m.waitEvent(other.Events(), "start by another", func(event Event) bool { return event.Unit == a.unit.Name })
	is := func(event Event) bool { return event.Unit == a.unit.Name && event.PodUID == a.spec.PodUID }
	m.eventually("it traps TERM", func() bool { return strings.Contains(a.mustExec("ps"), "sleep 1000") })
	m.must(m.manager.Signal(m.ctx, a.unit.Name, syscall.SIGTERM, false))
	m.waitEvent(m.manager.Events(), "end", func(event Event) bool {
		_, ok, err := m.manager.Get(m.ctx, a.unit.Name)
		return is(event) && !ok && err == nil
	})
	m.must(m.manager.Remove(m.ctx, a.unit.Name))
	m.must(m.manager.RemoveSlice(m.ctx, a.unit.Slice))
	m.must(m.manager.RemoveSlice(m.ctx, a.unit.Slice))
}

// TestMachineManyQuestions asks more at once than the bus lets wait for answers.
func TestMachineManyQuestions(t *testing.T) {
	m := newMachine(t)
	a := m.sleeper(nil)
	var group sync.WaitGroup
	for range 500 {
		group.Go(func() {
			if state, ok, err := m.manager.Get(m.ctx, a.unit.Name); err != nil || !ok || !state.Running() {
				t.Errorf("%+v %v %v", state, ok, err)
			}
		})
	}
	group.Wait()
}

func TestMachineList(t *testing.T) {
	m := newMachine(t)
	var all []*attempt
	for range 3 {
		a := m.attempt("sleep", "1000")
		a.unit.Identity.Attempt = 4
		a.unit.Identity.Image = "registry/%n%%$HOME\\x41;\"'@sha256:1"
		m.must(m.manager.EnsureSlice(m.ctx, Slice{Name: a.unit.Slice, Description: "100 %n pod"}))
		a.mustStart()
		all = append(all, a)
	}
	m.command("systemctl", "daemon-reload") // values must survive being written to files
	fresh, err := NewManager(m.ctx, m.manager.opts)
	m.must(err)
	states, err := fresh.List(m.ctx)
	m.must(err)
	for _, a := range all {
		found := false
		for _, state := range states {
			if state.Name != a.unit.Name {
				continue
			}
			found = true
			if state.Identity != a.unit.Identity || state.Slice != a.unit.Slice || !state.Running() || state.MainPID == 0 ||
				time.Since(state.StartedAt) > patience(5*time.Minute) || !strings.HasSuffix(state.ControlGroup, a.unit.Slice+"/"+a.unit.Name) {
				t.Errorf("state %+v of %+v", state, a.unit)
			}
		}
		if !found {
			t.Errorf("unit %s is not listed", a.unit.Name)
		}
	}
	slices, err := fresh.ListSlices(m.ctx)
	m.must(err)
	for _, a := range all {
		if !strings.Contains(strings.Join(slices, " "), a.unit.Slice) {
			t.Errorf("slice %s is not listed in %v", a.unit.Slice, slices)
		}
	}
}

// TestMachineUninterpreted puts what systemd would interpret into every string of a unit.
func TestMachineUninterpreted(t *testing.T) {
	m := newMachine(t)
	a := m.sleeper(func(a *attempt) {
		a.unit.Description = "%n %% $HOME ${HOME} \\x20 \"quoted\" 'x' ; #"
		a.unit.Identity.Image = "%i $PATH"
	})
	for range 2 {
		out, err := exec.Command("systemctl", "show", "-P", "Description", a.unit.Name).Output()
		m.must(err)
		if got := strings.TrimSuffix(string(out), "\n"); got != a.unit.Description {
			t.Errorf("description %q, want %q", got, a.unit.Description)
		}
		m.command("systemctl", "daemon-reload")
	}
	bad := m.attempt("true")
	bad.unit.Description = "x\nExecStartPre=/bin/touch /owned"
	if _, err := bad.start(); err == nil || !strings.Contains(err.Error(), "control character") {
		t.Errorf("newline in a description: %v", err)
	}
}

func TestMachineParallelStarts(t *testing.T) {
	m := newMachine(t)
	const count = 50
	attempts := make([]*attempt, count)
	for i := range attempts {
		attempts[i] = m.attempt("sleep", "1000")
		attempts[i].write()
	}
	var group sync.WaitGroup
	begin := time.Now()
	for _, a := range attempts {
		group.Add(1)
		go func() {
			defer group.Done()
			if _, err := m.manager.Start(m.ctx, a.unit); err != nil {
				t.Error(err)
			}
		}()
	}
	group.Wait()
	t.Logf("%d starts at once in %v", count, time.Since(begin))
	states, err := m.manager.List(m.ctx)
	m.must(err)
	if len(states) < count {
		t.Errorf("%d units listed", len(states))
	}
}

// TestMachineStartTwice is a start repeated after a crash of the agent between the call
// and its effect.
func TestMachineStartTwice(t *testing.T) {
	m := newMachine(t)
	a := m.sleeper(nil)
	first, _, err := m.manager.Get(m.ctx, a.unit.Name)
	m.must(err)
	again, err := m.manager.Start(m.ctx, a.unit)
	m.must(err)
	if again.MainPID != first.MainPID {
		t.Errorf("main process %d after the second start, %d before", again.MainPID, first.MainPID)
	}
}

// TestMachineReconnect takes the bus and systemd itself away under load: no call fails for
// good, an All event follows, and no container is touched.
func TestMachineReconnect(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(m *machine)
	}{
		{"bus restarted", func(m *machine) { m.command("systemctl", "restart", "dbus.service") }},
		{"systemd re-executed", func(m *machine) { m.command("systemctl", "daemon-reexec") }},
		{"systemd reloaded", func(m *machine) { m.command("systemctl", "daemon-reload") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMachine(t)
			a := m.sleeper(nil)
			before, _, err := m.manager.Get(m.ctx, a.unit.Name)
			m.must(err)
			stop := make(chan struct{})
			var group sync.WaitGroup
			group.Add(1)
			go func() {
				defer group.Done()
				startUntil(m, stop)
			}()
			test.do(m)
			m.waitEvent(m.manager.Events(), "All", func(event Event) bool { return event.All })
			close(stop)
			group.Wait()
			m.eventually("calls work again", func() bool {
				after, ok, err := m.manager.Get(m.ctx, a.unit.Name)
				return err == nil && ok && after.MainPID == before.MainPID && after.Running()
			})
			m.must(m.manager.Signal(m.ctx, a.unit.Name, syscall.SIGTERM, false))
			m.waitEvent(m.manager.Events(), "events flow again", func(event Event) bool { return event.Unit == a.unit.Name })
		})
	}
}

// startUntil starts containers one after the other; an error is tried again, as the
// provider does.
func startUntil(m *machine, stop <-chan struct{}) {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		a := m.attempt("sh", "-c", fmt.Sprintf("exit %d", i%7))
		a.write()
		m.eventually("start of "+a.unit.Name, func() bool {
			_, err := m.manager.Start(m.ctx, a.unit)
			if err != nil {
				m.t.Logf("start: %v", err)
			}
			return err == nil
		})
		if exit := a.exit(); exit.ExitCode != i%7 {
			m.t.Errorf("exit record %+v, want %d", exit, i%7)
		}
	}
}

func TestMachineContextEnds(t *testing.T) {
	m := newMachine(t)
	ctx, cancel := context.WithCancel(m.ctx)
	manager, err := NewManager(ctx, m.manager.opts)
	m.must(err)
	cancel()
	for range manager.Events() { // closed at the end
	}
	if _, err := manager.List(m.ctx); err == nil {
		t.Error("a call on a closed manager works")
	}
}
