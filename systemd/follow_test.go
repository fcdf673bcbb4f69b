package systemd

import (
	"maps"
	"reflect"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// runs are the properties of a service whose main process runs, as systemd 252 sends them.
func runs() map[string]dbus.Variant {
	return map[string]dbus.Variant{
		"MainPID": dbus.MakeVariant(uint32(42)), "ControlPID": dbus.MakeVariant(uint32(0)), "Result": dbus.MakeVariant("success"),
		"ExecMainStartTimestamp": dbus.MakeVariant(uint64(1_000_000)), "ExecMainExitTimestamp": dbus.MakeVariant(uint64(0)),
	}
}

func TestSignalsOfUnits(t *testing.T) {
	const unit = "vkm-a.service"
	with := func(name string, value any) map[string]dbus.Variant {
		changed := runs()
		changed[name] = dbus.MakeVariant(value)
		return changed
	}
	without := func(name string) map[string]dbus.Variant {
		changed := runs()
		maps.DeleteFunc(changed, func(k string, _ dbus.Variant) bool { return k == name })
		return changed
	}
	main := mainProcess{pid: 42, started: time.Unix(1, 0).UTC()}
	for _, test := range []struct {
		name  string
		known knownUnit
		body  []any
		main  mainProcess
		event bool
	}{
		{"begun and runs", knownUnit{begun: true}, []any{serviceIface, runs(), []string{}}, main, false},
		{"found and runs", knownUnit{}, []any{serviceIface, runs(), []string{}}, main, true},
		{"no main process", knownUnit{begun: true, main: main}, []any{serviceIface, with("MainPID", uint32(0)), []string{}}, mainProcess{started: main.started}, true},
		{"main process ended", knownUnit{begun: true, main: main}, []any{serviceIface, with("ExecMainExitTimestamp", uint64(2)), []string{}}, mainProcess{}, true},
		{"failed", knownUnit{begun: true, main: main}, []any{serviceIface, with("Result", "timeout"), []string{}}, mainProcess{}, true},
		{"not started", knownUnit{begun: true}, []any{serviceIface, with("ExecMainStartTimestamp", uint64(0)), []string{}}, mainProcess{}, true},
		{"says nothing of its end", knownUnit{begun: true}, []any{serviceIface, without("ExecMainExitTimestamp"), []string{}}, mainProcess{}, true},
		{"says nothing of its process", knownUnit{begun: true}, []any{serviceIface, without("MainPID"), []string{}}, mainProcess{started: main.started}, true},
		{"of another interface", knownUnit{begun: true}, []any{unitIface, runs(), []string{}}, mainProcess{}, true},
		{"malformed", knownUnit{begun: true}, []any{serviceIface, "x"}, mainProcess{}, true},
		{"empty", knownUnit{begun: true}, nil, mainProcess{}, true},
	} {
		m := &Manager{events: newEventQueue(), jobs: newJobTable(), identities: map[string]knownUnit{unit: test.known}}
		m.handle(t.Context(), &dbus.Signal{Path: unitPath(unit), Name: propsIface + ".PropertiesChanged", Body: test.body})
		if known, _ := m.known(unit); known.main != test.main {
			t.Errorf("%s: main process %+v, want %+v", test.name, known.main, test.main)
		}
		var want []Event
		if test.event {
			want = []Event{{Unit: unit}}
		}
		if got := m.events.take(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: events %+v, want %+v", test.name, got, want)
		}
	}
}

// TestSignalsOfUnknownUnits: they are news, and nothing is kept of them.
func TestSignalsOfUnknownUnits(t *testing.T) {
	m := &Manager{events: newEventQueue(), jobs: newJobTable(), identities: map[string]knownUnit{}}
	for _, unit := range []string{"vkm-a.service", "ssh.service"} {
		m.handle(t.Context(), &dbus.Signal{Path: unitPath(unit), Name: propsIface + ".PropertiesChanged", Body: []any{serviceIface, runs(), []string{}}})
	}
	if got := m.events.take(); !reflect.DeepEqual(got, []Event{{Unit: "vkm-a.service"}}) || len(m.identities) != 0 {
		t.Errorf("events %+v, known %+v", got, m.identities)
	}
}

// TestLostSignals: what a signal told before may be wrong by now, and is asked for again.
func TestLostSignals(t *testing.T) {
	known := knownUnit{slice: "a.slice", begun: true, main: mainProcess{pid: 42, started: time.Unix(1, 0)}}
	m := &Manager{events: newEventQueue(), jobs: newJobTable(), connected: make(chan struct{}), identities: map[string]knownUnit{"vkm-a.service": known}}
	m.disconnect()
	if got, _ := m.known("vkm-a.service"); got != (knownUnit{slice: "a.slice", begun: true}) {
		t.Errorf("known is %+v", got)
	}
}
