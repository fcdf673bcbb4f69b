package systemd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/godbus/dbus/v5"
)

const (
	busName      = "org.freedesktop.systemd1"
	managerPath  = dbus.ObjectPath("/org/freedesktop/systemd1")
	managerIface = busName + ".Manager"
	unitIface    = busName + ".Unit"
	serviceIface = busName + ".Service"
	propsIface   = "org.freedesktop.DBus.Properties"
	unitPathRoot = "/org/freedesktop/systemd1/unit/"
)

// D-Bus errors of systemd that we tell apart.
const (
	errNoSuchUnit     = busName + ".NoSuchUnit"
	errUnitExists     = busName + ".UnitExists"
	errNoSuchProcess  = "org.freedesktop.DBus.Error.UnixProcessIdUnknown"
	errUnknownObject  = "org.freedesktop.DBus.Error.UnknownObject"
	errUnknownProcess = busName + ".NoSuchProcess"
	errBusy           = "System.Error.EBUSY"
)

// isBusError says whether err is one of the named D-Bus errors.
func isBusError(err error, names ...string) bool {
	var e dbus.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, name := range names {
		if e.Name == name {
			return true
		}
	}
	return false
}

// unitPath is the object path of a unit (sd_bus_path_encode).
func unitPath(name string) dbus.ObjectPath {
	var b strings.Builder
	b.WriteString(unitPathRoot)
	for i := range len(name) {
		c := name[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || i > 0 && c >= '0' && c <= '9' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "_%02x", c)
		}
	}
	return dbus.ObjectPath(b.String())
}

// unitName is the reverse of unitPath; ok is false for other objects.
func unitName(path dbus.ObjectPath) (name string, ok bool) {
	encoded, ok := strings.CutPrefix(string(path), unitPathRoot)
	if !ok {
		return "", false
	}
	var b strings.Builder
	for i := 0; i < len(encoded); i++ {
		if encoded[i] != '_' {
			b.WriteByte(encoded[i])
			continue
		}
		if i+2 >= len(encoded) {
			return "", false
		}
		var c byte
		if _, err := fmt.Sscanf(encoded[i+1:i+3], "%02x", &c); err != nil {
			return "", false
		}
		b.WriteByte(c)
		i += 2
	}
	return b.String(), true
}

// maxCalls is how many calls wait for their answers at once. The system bus refuses more than
// 128 per connection (max_replies_per_connection, dbus-daemon(1)).
const maxCalls = 96

// call is a method call on systemd's manager object.
func (m *Manager) call(ctx context.Context, method string, args ...any) (*dbus.Call, error) {
	conn, err := m.connection(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.calls.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("wait for other calls to systemd: %w", err)
	}
	defer m.calls.Release(1)
	call := conn.Object(busName, managerPath).CallWithContext(ctx, managerIface+"."+method, 0, args...)
	return call, call.Err
}

// property reads several properties of one unit at once; the calls are pipelined.
func (m *Manager) properties(ctx context.Context, unit string, names ...[2]string) ([]dbus.Variant, error) {
	conn, err := m.connection(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.calls.Acquire(ctx, int64(len(names))); err != nil {
		return nil, fmt.Errorf("wait for other calls to systemd: %w", err)
	}
	defer m.calls.Release(int64(len(names)))
	object := conn.Object(busName, unitPath(unit))
	calls := make([]*dbus.Call, len(names))
	for i, name := range names {
		calls[i] = object.GoWithContext(ctx, propsIface+".Get", 0, make(chan *dbus.Call, 1), name[0], name[1])
	}
	values := make([]dbus.Variant, len(names))
	for _, call := range calls { // all of them: each counts until its answer is there
		<-call.Done
	}
	for i, call := range calls {
		if err := call.Store(&values[i]); err != nil {
			return nil, fmt.Errorf("read property %s of unit %s: %w", names[i][1], unit, err)
		}
	}
	return values, nil
}
