package shutdown

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
)

// login is a logind on a bus of its own.
type login struct {
	t     *testing.T
	conn  *dbus.Conn
	locks chan lock
}

// lock is a delay lock that was given out: ours ends once theirs is closed here and there.
type lock struct{ ours, theirs *os.File }

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/><allow user="*"/></policy></busconfig>`

func newLogin(t *testing.T, goingDown bool) *login {
	t.Helper()
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		if os.Getenv("VK_METAL_REQUIRE") == "all" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	config, socket := filepath.Join(dir, "bus.conf"), filepath.Join(dir, "bus")
	if err := os.WriteFile(config, fmt.Appendf(nil, busConfig, socket), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--config-file="+config, "--nofork", "--nopidfile", "--print-address")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	address, err := bufio.NewReader(out).ReadString('\n') // it listens
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", strings.TrimSpace(address))
	l := &login{t: t, locks: make(chan lock, 10)}
	if l.conn, err = dbus.ConnectSystemBus(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.conn.Close() })
	l.serve(goingDown)
	return l
}

func (l *login) serve(goingDown bool) {
	l.t.Helper()
	if err := l.conn.Export(l, loginPath, loginManager); err != nil {
		l.t.Fatal(err)
	}
	_, err := prop.Export(l.conn, loginPath, prop.Map{loginManager: {
		"PreparingForShutdown": {Value: goingDown}, "InhibitDelayMaxUSec": {Value: uint64(time.Hour / time.Microsecond)},
	}})
	if err != nil {
		l.t.Fatal(err)
	}
	if reply, err := l.conn.RequestName(loginName, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		l.t.Fatalf("own the name of logind: %v, %v", reply, err)
	}
}

// Inhibit is logind's.
func (l *login) Inhibit(what, _, _, mode string) (dbus.UnixFD, *dbus.Error) {
	if what != "shutdown" || mode != "delay" {
		return 0, dbus.MakeFailedError(fmt.Errorf("inhibit %s by %s", what, mode))
	}
	ours, theirs, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	l.t.Cleanup(func() { _, _ = ours.Close(), theirs.Close() })
	l.locks <- lock{ours, theirs}
	return dbus.UnixFD(theirs.Fd()), nil
}

// tell sends logind's signal.
func (l *login) tell(goingDown bool) {
	l.t.Helper()
	if err := l.conn.Emit(loginPath, loginManager+"."+prepare, goingDown); err != nil {
		l.t.Fatal(err)
	}
}

// run starts what is tested; what it does comes by the channel.
func (l *login) run() (did chan string, begin chan struct{}) {
	did, begin = make(chan string, 10), make(chan struct{})
	over := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(over)
		_ = Run(ctx, Options{
			Delay: time.Minute, Log: slog.New(slog.DiscardHandler), Dir: l.t.TempDir(),
			Begin:     func(context.Context) { did <- "begin"; <-begin },
			Cancelled: func() { did <- "cancelled" },
		})
	}()
	l.t.Cleanup(func() { cancel(); <-over })
	return did, begin
}

func (l *login) expect(did chan string, want string) {
	l.t.Helper()
	select {
	case got := <-did:
		if got != want {
			l.t.Fatalf("%s, want %s", got, want)
		}
	case <-time.After(time.Minute):
		l.t.Fatalf("no %s", want)
	}
}

func (l *login) lock() lock {
	l.t.Helper()
	select {
	case given := <-l.locks:
		return given
	case <-time.After(time.Minute):
		l.t.Fatal("no lock was taken")
	}
	return lock{}
}

// given waits until the lock, which has reached the other side, is given back.
func (l *login) given(k lock) {
	l.t.Helper()
	if err := errors.Join(k.theirs.Close(), k.ours.SetReadDeadline(time.Now().Add(time.Minute))); err != nil {
		l.t.Fatal(err)
	}
	if _, err := k.ours.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		l.t.Fatalf("the lock is held: %v", err)
	}
}

func TestShutdownWaitsForPods(t *testing.T) {
	l := newLogin(t, false)
	did, begin := l.run()
	taken := l.lock()
	l.tell(true)
	l.expect(did, "begin")
	select {
	case <-l.locks:
		t.Error("another lock was taken")
	default:
	}
	close(begin)
	l.given(taken)
	l.tell(false) // somebody has cancelled it
	l.expect(did, "cancelled")
	l.lock() // and the next shutdown is put off as well
	l.tell(true)
	l.expect(did, "begin")
}

// TestShutdownGoesOnWithTheNextAgent: no lock is to be had, and what is to be done is begun.
func TestShutdownGoesOnWithTheNextAgent(t *testing.T) {
	l := newLogin(t, true)
	did, begin := l.run()
	l.expect(did, "begin")
	close(begin)
	select {
	case <-l.locks:
		t.Error("a lock was asked for in the middle of a shutdown")
	default:
	}
	l.tell(false)
	l.expect(did, "cancelled")
	l.lock()
}
