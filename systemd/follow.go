package systemd

import (
	"context"
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"
)

// reconnectDelay is the pause between attempts to reach the bus again.
const reconnectDelay = 100 * time.Millisecond

// matchRules are as narrow as D-Bus allows: object paths cannot be matched by prefix, so
// foreign services' changes are dropped here.
var matchRules = []string{
	"type='signal',sender='" + busName + "',interface='" + managerIface + "',member='JobRemoved'",
	"type='signal',sender='" + busName + "',interface='" + managerIface + "',member='UnitRemoved'",
	"type='signal',sender='" + busName + "',interface='" + managerIface + "',member='Reloading'",
	"type='signal',sender='" + busName + "',interface='" + propsIface + "',member='PropertiesChanged'," +
		"path_namespace='/org/freedesktop/systemd1/unit',arg0='" + serviceIface + "'",
	"type='signal',sender='org.freedesktop.DBus',interface='org.freedesktop.DBus',member='NameOwnerChanged',arg0='" + busName + "'",
}

// The reader shows every so often that it works; a connection that is being made again
// counts as work for as long as the bus answers within readerSilent.
const (
	pulseEvery   = 5 * time.Second
	readerSilent = time.Minute
)

func (m *Manager) beat() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pulse = time.Now()
}

// Alive fails when the reader of the bus hangs. A bus that is away is no hang: starting
// this process again would not bring it back.
func (m *Manager) Alive() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if age := time.Since(m.pulse); age > readerSilent {
		return fmt.Errorf("the reader of the system bus has been silent for %s", age.Round(time.Second))
	}
	return nil
}

func dialSystemBus(ctx context.Context) (*dbus.Conn, error) {
	conn, err := dbus.SystemBusPrivate(dbus.WithContext(ctx), dbus.WithSignalHandler(dbus.NewSequentialSignalHandler()))
	if err != nil {
		return nil, err
	}
	if err := conn.Auth(nil); err != nil {
		conn.Close()
		return nil, fmt.Errorf("authenticate: %w", err)
	}
	if err := conn.Hello(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("say hello: %w", err)
	}
	return conn, nil
}

// connect makes the connection and publishes it once signals flow.
func (m *Manager) connect(ctx context.Context) (<-chan *dbus.Signal, error) {
	conn, err := m.opts.Dial(ctx)
	if err != nil {
		return nil, err
	}
	signals := make(chan *dbus.Signal, 256)
	conn.Signal(signals)
	if err := subscribe(ctx, conn); err != nil {
		conn.Close()
		return nil, err
	}
	m.mu.Lock()
	m.conn = conn
	close(m.connected)
	m.mu.Unlock()
	return signals, nil
}

func subscribe(ctx context.Context, conn *dbus.Conn) error {
	for _, rule := range matchRules {
		if err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.AddMatch", 0, rule).Err; err != nil {
			return fmt.Errorf("subscribe to %s: %w", rule, err)
		}
	}
	err := conn.Object(busName, managerPath).CallWithContext(ctx, managerIface+".Subscribe", 0).Err
	if err != nil && !isBusError(err, busName+".AlreadySubscribed") {
		return fmt.Errorf("subscribe to systemd: %w", err)
	}
	return nil
}

// follow handles signals; when the connection is lost it makes a new one and says so by
// an All event.
func (m *Manager) follow(ctx context.Context, signals <-chan *dbus.Signal) {
	defer m.disconnect()
	for {
		if m.handleAll(ctx, signals) {
			return
		}
		m.disconnect()
		m.log.Warn("connection to systemd lost")
		if signals = m.reconnect(ctx); signals == nil {
			return
		}
		m.log.Info("connection to systemd made again")
		m.events.add(Event{All: true})
	}
}

// handleAll returns true when ctx has ended, false when the connection has.
func (m *Manager) handleAll(ctx context.Context, signals <-chan *dbus.Signal) bool {
	tick := time.NewTicker(pulseEvery)
	defer tick.Stop()
	for {
		m.beat()
		select {
		case <-ctx.Done():
			return true
		case <-tick.C:
		case signal, ok := <-signals:
			if !ok {
				return false
			}
			m.handle(ctx, signal)
		}
	}
}

func (m *Manager) disconnect() {
	m.mu.Lock()
	conn := m.conn
	if conn != nil {
		m.conn, m.connected = nil, make(chan struct{})
	}
	m.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
	m.lose()
}

// lose takes up that signals may have been missed.
func (m *Manager) lose() {
	m.mu.Lock()
	for unit, known := range m.identities {
		known.main = mainProcess{}
		m.identities[unit] = known
	}
	m.mu.Unlock()
	m.jobs.lose()
}

func (m *Manager) reconnect(ctx context.Context) <-chan *dbus.Signal {
	for {
		m.beat()
		if signals, err := m.connect(ctx); err == nil {
			return signals
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(reconnectDelay):
		}
	}
}

func (m *Manager) handle(ctx context.Context, signal *dbus.Signal) {
	switch signal.Name {
	case managerIface + ".JobRemoved":
		var id uint32
		var job dbus.ObjectPath
		var unit, result string
		if dbus.Store(signal.Body, &id, &job, &unit, &result) == nil {
			m.jobs.finish(job, result)
		}
	case managerIface + ".UnitRemoved":
		var unit string
		var path dbus.ObjectPath
		if dbus.Store(signal.Body, &unit, &path) == nil && ours(unit) {
			m.changed(unit)
			m.forget(unit)
		}
	case propsIface + ".PropertiesChanged":
		if unit, ok := unitName(signal.Path); ok && ours(unit) && !m.rememberMain(unit, runningMain(signal.Body)) {
			m.changed(unit)
		}
	case managerIface + ".Reloading":
		m.events.add(Event{All: true})
	case "org.freedesktop.DBus.NameOwnerChanged":
		m.ownerChanged(ctx, signal)
	}
}

// runningMain reads the body of a service's PropertiesChanged. systemd sends all of these
// properties whenever one has changed; without one of them, or after any failure, the process is
// not said to run.
func runningMain(body []any) mainProcess {
	if len(body) < 2 {
		return mainProcess{}
	}
	of, _ := body[0].(string)
	changed, _ := body[1].(map[string]dbus.Variant)
	result, _ := changed["Result"].Value().(string)
	exited, told := changed["ExecMainExitTimestamp"].Value().(uint64)
	main := mainProcess{pid: asInt(changed["MainPID"]), started: asTime(changed["ExecMainStartTimestamp"])}
	if of != serviceIface || result != "success" || !told || exited != 0 || main.started.IsZero() {
		return mainProcess{}
	}
	return main
}

func (m *Manager) changed(unit string) {
	known, _ := m.known(unit)
	m.events.add(Event{Unit: unit, PodUID: known.identity.PodUID})
}

// ownerChanged: systemd has executed itself anew (daemon-reexec): it may have forgotten
// our subscription, and signals were lost in between.
func (m *Manager) ownerChanged(ctx context.Context, signal *dbus.Signal) {
	var name, before, after string
	if dbus.Store(signal.Body, &name, &before, &after) != nil || after == "" {
		return
	}
	m.mu.Lock()
	conn := m.conn
	m.mu.Unlock()
	m.lose()
	go func() { // a call from here would wait for a reply behind ourselves
		err := conn.Object(busName, managerPath).CallWithContext(ctx, managerIface+".Subscribe", 0).Err
		if err != nil && !isBusError(err, busName+".AlreadySubscribed") {
			m.log.Warn("subscribe to systemd again", "error", err)
		}
		m.events.add(Event{All: true})
	}()
}
