// Package shutdown learns from logind that the server is about to go down and puts that off
// while something is done about it: a delay lock, as a kubelet's (KEP-2000). It must not
// know what is done.
package shutdown

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
)

// Options say how long a shutdown is put off, and for what.
type Options struct {
	// Delay is what Begin may take.
	Delay time.Duration
	// Begin is called when the server is about to go down, which it does when Begin returns
	// or Delay is over. Cancelled is called when it does not go down after all.
	Begin     func(ctx context.Context)
	Cancelled func()
	// Dir has logind's drop-ins; empty means /etc/systemd/logind.conf.d.
	Dir string
	Log *slog.Logger
}

const (
	loginName    = "org.freedesktop.login1"
	loginPath    = dbus.ObjectPath("/org/freedesktop/login1")
	loginManager = loginName + ".Manager"
	prepare      = "PrepareForShutdown"
	// dropIn comes after a distribution's.
	dropIn      = "99-vk-metal.conf"
	callTimeout = 10 * time.Second
	retryAfter  = 2 * time.Second
	retryMax    = time.Minute
)

// Run holds the lock until ctx ends, and returns ctx's error. Where logind cannot be had it tries again: D-Bus and
// logind may be restarted at any time.
func Run(ctx context.Context, o Options) error {
	if o.Dir == "" {
		o.Dir = "/etc/systemd/logind.conf.d"
	}
	wait, last := retryAfter, ""
	for {
		begun := time.Now()
		err := o.serve(ctx)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(begun) > retryMax {
			wait = retryAfter
		}
		if text := err.Error(); text != last {
			o.Log.Warn("Pods may not get their time when the node goes down, will retry", "err", err)
			last = text
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, retryMax)
	}
}

// serve holds one lock after another on one connection.
func (o Options) serve(ctx context.Context) error {
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("connect to D-Bus: %w", err)
	}
	defer conn.Close()
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	for _, match := range [][]dbus.MatchOption{
		{dbus.WithMatchSender(loginName), dbus.WithMatchInterface(loginManager), dbus.WithMatchMember(prepare)},
		{dbus.WithMatchInterface("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, loginName)},
	} {
		if err := conn.AddMatchSignalContext(ctx, match...); err != nil {
			return fmt.Errorf("watch logind: %w", err)
		}
	}
	if err := o.resume(ctx, conn, signals); err != nil {
		return err
	}
	if err := o.allowDelay(ctx, conn); err != nil {
		return err
	}
	o.Log.Info("Shutdowns wait for pods", "for", o.Delay)
	for {
		if err := o.hold(ctx, conn, signals); err != nil {
			return err
		}
	}
}

// resume goes on with a shutdown that has begun before: this program was restarted meanwhile, and
// locks of others delay it still. No lock is given out then; what is to be done is done as far
// as there is time. It returns nil when there is no shutdown, or no longer.
func (o Options) resume(ctx context.Context, conn *dbus.Conn, signals <-chan *dbus.Signal) error {
	value, err := property(ctx, conn, "PreparingForShutdown")
	if err != nil {
		return fmt.Errorf("ask logind whether the server goes down: %w", err)
	}
	if going, _ := value.Value().(bool); !going {
		return nil
	}
	o.Log.Warn("The server is going down already, pods have the time that others take")
	o.begin(ctx)
	return o.follow(ctx, signals, nil)
}

func (o Options) begin(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, o.Delay)
	defer cancel()
	o.Begin(ctx)
}

// hold takes a lock and keeps it until the server goes down; it returns nil when that was
// cancelled and another lock is needed.
func (o Options) hold(ctx context.Context, conn *dbus.Conn, signals <-chan *dbus.Signal) error {
	lock, err := inhibit(ctx, conn)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }() // twice does no harm
	return o.follow(ctx, signals, lock)
}

// follow acts on logind's signals until a shutdown is cancelled (nil), or the connection,
// logind or ctx ends.
func (o Options) follow(ctx context.Context, signals <-chan *dbus.Signal, lock *os.File) error {
	for {
		var signal *dbus.Signal
		select {
		case <-ctx.Done():
			return ctx.Err()
		case s, ok := <-signals:
			if !ok {
				return errors.New("watch logind: the connection to D-Bus ended")
			}
			signal = s
		}
		if signal.Name == "org.freedesktop.DBus.NameOwnerChanged" {
			return errors.New("watch logind: it was restarted")
		}
		if signal.Name != loginManager+"."+prepare || len(signal.Body) != 1 {
			continue
		}
		if going, _ := signal.Body[0].(bool); !going {
			o.Log.Info("The shutdown was cancelled")
			o.Cancelled()
			return nil
		}
		o.begin(ctx)
		if ctx.Err() == nil {
			_ = lock.Close() // go on
		}
	}
}

// inhibit takes a delay lock; closing the file gives it back.
func inhibit(ctx context.Context, conn *dbus.Conn) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var fd dbus.UnixFD
	err := conn.Object(loginName, loginPath).CallWithContext(ctx, loginManager+".Inhibit", 0,
		"shutdown", "vk-metal", "Pods have to end before the node goes down", "delay").Store(&fd)
	if err != nil {
		return nil, fmt.Errorf("take a delay lock of logind: %w", err)
	}
	return os.NewFile(uintptr(fd), "inhibitor"), nil
}

// allowDelay sees to it that logind lets locks delay a shutdown for as long as is needed.
func (o Options) allowDelay(ctx context.Context, conn *dbus.Conn) error {
	allowed, err := maxDelay(ctx, conn)
	if err != nil || allowed >= o.Delay {
		return err
	}
	if err := o.writeDropIn(); err != nil {
		return err
	}
	call := conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1").CallWithContext(ctx,
		"org.freedesktop.systemd1.Manager.KillUnit", 0, "systemd-logind.service", "main", int32(syscall.SIGHUP))
	if call.Err != nil {
		return fmt.Errorf("reload logind: %w", call.Err)
	}
	for range 50 { // nothing tells when it has read its configuration
		if allowed, err = maxDelay(ctx, conn); err != nil || allowed >= o.Delay {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return fmt.Errorf("logind delays shutdowns by %s at most, %s are needed: another drop-in of %s overrides %s", allowed, o.Delay, o.Dir, dropIn)
}

func (o Options) writeDropIn() error {
	seconds := int64((o.Delay + time.Second - 1) / time.Second)
	text := fmt.Sprintf("# Written by vk-metal: shutdownGracePeriod of its configuration.\n[Login]\nInhibitDelayMaxSec=%d\n", seconds)
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return fmt.Errorf("configure logind: %w", err)
	}
	if err := os.WriteFile(filepath.Join(o.Dir, dropIn), []byte(text), 0o644); err != nil { //nolint:gosec // as all files there
		return fmt.Errorf("configure logind: %w", err)
	}
	return nil
}

// maxDelay is InhibitDelayMaxUSec, in force.
func maxDelay(ctx context.Context, conn *dbus.Conn) (time.Duration, error) {
	value, err := property(ctx, conn, "InhibitDelayMaxUSec")
	if err != nil {
		return 0, fmt.Errorf("ask logind how long a shutdown may be delayed: %w", err)
	}
	usec, ok := value.Value().(uint64)
	if !ok {
		return 0, fmt.Errorf("ask logind how long a shutdown may be delayed: it answered %v", value)
	}
	return time.Duration(min(usec, 1<<52)) * time.Microsecond, nil
}

// property reads one of logind's manager.
func property(ctx context.Context, conn *dbus.Conn, name string) (value dbus.Variant, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err = conn.Object(loginName, loginPath).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, loginManager, name).Store(&value)
	return value, err
}
