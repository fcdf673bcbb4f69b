package systemd

import (
	"context"
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sync/errgroup"
)

// listed is the D-Bus type (ssssssouso) of ListUnitsByPatterns.
type listed struct {
	Name, Description, LoadState, ActiveState, SubState, Following string
	Path                                                           dbus.ObjectPath
	JobID                                                          uint32
	JobType                                                        string
	JobPath                                                        dbus.ObjectPath
}

// listParallel bounds how many units' properties are asked for at once.
const listParallel = 16

func (m *Manager) listPattern(ctx context.Context, pattern string) ([]listed, error) {
	call, err := m.call(ctx, "ListUnitsByPatterns", []string{}, []string{pattern})
	if err != nil {
		return nil, fmt.Errorf("list units %s: %w", pattern, err)
	}
	var units []listed
	if err := call.Store(&units); err != nil {
		return nil, fmt.Errorf("read list of units %s: %w", pattern, err)
	}
	return units, nil
}

// List implements Runtime.
func (m *Manager) List(ctx context.Context) ([]UnitState, error) {
	units, err := m.listPattern(ctx, unitPattern)
	if err != nil {
		return nil, err
	}
	states := make([]UnitState, len(units))
	found := make([]bool, len(units))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(listParallel)
	for i, unit := range units {
		group.Go(func() (err error) {
			states[i], found[i], err = m.detail(ctx, unit)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	out := states[:0]
	for i, state := range states {
		if found[i] {
			out = append(out, state)
		}
	}
	return out, nil
}

// Get implements Runtime.
func (m *Manager) Get(ctx context.Context, unit string) (UnitState, bool, error) {
	call, err := m.call(ctx, "ListUnitsByNames", []string{unit})
	if err != nil {
		return UnitState{}, false, fmt.Errorf("look up unit %s: %w", unit, err)
	}
	var units []listed
	if err := call.Store(&units); err != nil {
		return UnitState{}, false, fmt.Errorf("look up unit %s: %w", unit, err)
	}
	if len(units) == 0 {
		return UnitState{}, false, nil
	}
	return m.detail(ctx, units[0])
}

// detail reads what a listing does not have. ok is false when the unit went meanwhile or
// is not ours.
func (m *Manager) detail(ctx context.Context, unit listed) (UnitState, bool, error) {
	// A unit whose file cannot be read any more may still run.
	if unit.LoadState != "loaded" && unit.ActiveState == "inactive" {
		return UnitState{}, false, nil
	}
	known, ok, err := m.lookUp(ctx, unit.Name)
	if err != nil || !ok {
		return UnitState{}, false, err
	}
	values, err := m.properties(ctx, unit.Name, [2]string{serviceIface, "MainPID"},
		[2]string{serviceIface, "ControlGroup"}, [2]string{serviceIface, "ExecMainStartTimestamp"})
	if gone(err) {
		return UnitState{}, false, nil
	}
	if err != nil {
		return UnitState{}, false, err
	}
	group, _ := values[1].Value().(string)
	return UnitState{
		Name: unit.Name, Identity: known.identity, Slice: known.slice,
		ActiveState: unit.ActiveState, SubState: unit.SubState,
		MainPID: asInt(values[0]), ControlGroup: group, StartedAt: asTime(values[2]),
	}, true, nil
}

// lookUp reads identity and slice once per unit.
func (m *Manager) lookUp(ctx context.Context, unit string) (knownUnit, bool, error) {
	if known, ok := m.known(unit); ok {
		return known, true, nil
	}
	values, err := m.properties(ctx, unit, [2]string{serviceIface, "LogExtraFields"}, [2]string{serviceIface, "Slice"})
	if gone(err) {
		return knownUnit{}, false, nil
	}
	if err != nil {
		return knownUnit{}, false, err
	}
	fields, _ := values[0].Value().([][]byte)
	identity, ok := parseIdentity(fields)
	if !ok {
		return knownUnit{}, false, nil
	}
	slice, _ := values[1].Value().(string)
	known := knownUnit{identity: identity, slice: slice}
	m.remember(unit, known)
	return known, true, nil
}

func asInt(v dbus.Variant) int {
	n, _ := v.Value().(uint32)
	return int(n)
}

// asTime reads systemd's microseconds; 0 is never.
func asTime(v dbus.Variant) time.Time {
	n, _ := v.Value().(uint64)
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(int64(n)).UTC()
}
