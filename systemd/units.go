package systemd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// Our units' names start and end so; identity is never read from what is between.
const (
	unitPrefix  = "vkm-"
	unitSuffix  = ".service"
	unitPattern = unitPrefix + "*" + unitSuffix
)

func ours(unit string) bool {
	return strings.HasPrefix(unit, unitPrefix) && strings.HasSuffix(unit, unitSuffix)
}

// StartError says that an attempt never came to run its program.
type StartError struct {
	Unit string
	// Result is systemd's word for it: failed, timeout, dependency, canceled.
	Result string
	// Record is the launcher's, nil when it could not even write one.
	Record *launchspec.StartError
}

func (e *StartError) Error() string {
	if e.Record != nil {
		return fmt.Sprintf("start unit %s: %s", e.Unit, e.Record.Message)
	}
	return fmt.Sprintf("start unit %s: job result %q", e.Unit, e.Result)
}

// Start implements Runtime. An attempt that ran and has already ended was started: its
// exit record tells the rest. The error is a *StartError where the program never ran. A
// unit that exists already is taken for this attempt, started by an earlier call.
func (m *Manager) Start(ctx context.Context, unit Unit) (Started, error) {
	if !ours(unit.Name) {
		return Started{}, fmt.Errorf("start unit %q: its name is not of the form %s", unit.Name, unitPattern)
	}
	props, err := unitProperties(unit, m.opts.Launcher, m.cgroup)
	if err != nil {
		return Started{}, err
	}
	m.remember(unit.Name, knownUnit{identity: unit.Identity, slice: unit.Slice, begun: true})
	result, err := m.startTransient(ctx, unit.Name, props)
	if errors.Is(err, errJobLost) || isBusError(err, errUnitExists) {
		result, err = m.awaitStart(ctx, unit.Name)
	}
	if err != nil {
		return Started{}, fmt.Errorf("start unit %s: %w", unit.Name, err)
	}
	return m.started(ctx, unit, result)
}

// auxUnit is the D-Bus type (sa(sv)) of StartTransientUnit's last argument, always empty.
type auxUnit struct {
	Name       string
	Properties []property
}

func (m *Manager) startTransient(ctx context.Context, name string, props []property) (string, error) {
	return m.jobs.run(ctx, func() (job dbus.ObjectPath, err error) {
		call, err := m.call(ctx, "StartTransientUnit", name, "fail", props, []auxUnit{})
		if err != nil {
			return "", err
		}
		return job, call.Store(&job)
	})
}

// awaitStart watches a unit whose job we cannot follow until it has left "activating".
func (m *Manager) awaitStart(ctx context.Context, unit string) (string, error) {
	for {
		state, ok, err := m.Get(ctx, unit)
		switch {
		case err != nil:
			return "", err
		case !ok || state.ActiveState == "failed" || state.ActiveState == "inactive":
			return "failed", nil
		case state.ActiveState != "activating":
			return "done", nil
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(20 * time.Millisecond): // only after a lost connection
		}
	}
}

// started turns a job result into the outcome of Start.
func (m *Manager) started(ctx context.Context, unit Unit, result string) (Started, error) {
	if result == "done" {
		// Before it says that a job is done systemd tells how the unit is now
		// (bus_job_send_removed_signal): usually there is nothing to ask.
		if known, _ := m.known(unit.Name); known.main.pid != 0 {
			return Started{MainPID: known.main.pid, StartedAt: known.main.started}, nil
		}
		values, err := m.properties(ctx, unit.Name,
			[2]string{serviceIface, "MainPID"}, [2]string{serviceIface, "ExecMainStartTimestamp"})
		if err == nil {
			return Started{MainPID: asInt(values[0]), StartedAt: asTime(values[1])}, nil
		}
		if !gone(err) {
			return Started{}, err
		}
	}
	exit, err := readExit(unit.ExitRecord)
	switch {
	case err != nil:
		return Started{}, &StartError{Unit: unit.Name, Result: result}
	case exit.StartError != nil:
		return Started{}, &StartError{Unit: unit.Name, Result: result, Record: exit.StartError}
	}
	at, _ := time.Parse(time.RFC3339Nano, exit.StartedAt)
	return Started{StartedAt: at}, nil
}

func readExit(path string) (*launchspec.Exit, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read exit record: %w", err)
	}
	exit := new(launchspec.Exit)
	if err := json.Unmarshal(data, exit); err != nil {
		return nil, fmt.Errorf("parse exit record %s: %w", path, err)
	}
	return exit, nil
}

func gone(err error) bool {
	return isBusError(err, errNoSuchUnit, errUnknownObject)
}

// Signal implements Runtime. A unit or process that is gone is success.
func (m *Manager) Signal(ctx context.Context, unit string, signal syscall.Signal, all bool) error {
	whom := "main"
	if all {
		whom = "all"
	}
	_, err := m.call(ctx, "KillUnit", unit, whom, int32(signal))
	if err == nil || isBusError(err, errNoSuchUnit, errNoSuchProcess, errUnknownProcess) {
		return nil
	}
	return fmt.Errorf("send %s to %s of unit %s: %w", signal, whom, unit, err)
}

// Remove implements Runtime.
func (m *Manager) Remove(ctx context.Context, unit string) error {
	state, ok, err := m.Get(ctx, unit)
	if err != nil || !ok {
		return err
	}
	if state.Running() {
		if err := m.Signal(ctx, unit, syscall.SIGKILL, true); err != nil {
			return err
		}
		if err := m.stop(ctx, unit); err != nil {
			return err
		}
	}
	if _, err := m.call(ctx, "ResetFailedUnit", unit); err != nil && !gone(err) {
		return fmt.Errorf("reset unit %s: %w", unit, err)
	}
	return nil
}

// stop stops a unit or slice and waits for it; missing is success.
func (m *Manager) stop(ctx context.Context, name string) error {
	for {
		_, err := m.jobs.run(ctx, func() (job dbus.ObjectPath, err error) {
			call, err := m.call(ctx, "StopUnit", name, "replace")
			if err != nil {
				return "", err
			}
			return job, call.Store(&job)
		})
		switch {
		case err == nil || gone(err):
			return nil
		case !errors.Is(err, errJobLost):
			return fmt.Errorf("stop unit %s: %w", name, err)
		}
	}
}
