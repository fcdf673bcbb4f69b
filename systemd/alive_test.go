package systemd

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/godbus/dbus/v5"
)

// TestAlive has the bus idle, go away and answer no more at all: only the last is a hang.
func TestAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		silent := make(chan struct{})
		var hangs atomic.Bool
		dial := func() error {
			if hangs.Load() {
				<-silent
			}
			return errors.New("no bus")
		}
		m := &Manager{
			opts: Options{Dial: func(context.Context) (*dbus.Conn, error) { return nil, dial() }},
			log:  slog.New(slog.DiscardHandler), ctx: ctx, events: newEventQueue(), jobs: newJobTable(), connected: make(chan struct{}),
		}
		signals := make(chan *dbus.Signal)
		go m.follow(ctx, signals)
		check := func(when string, after time.Duration, want bool) {
			t.Helper()
			time.Sleep(after)
			if err := m.Alive(); (err == nil) != want {
				t.Errorf("%s: Alive = %v", when, err)
			}
		}
		check("idle", time.Hour, true)
		close(signals)
		check("away", time.Hour, true)
		hangs.Store(true)
		check("silent for a short time", readerSilent/2, true)
		check("silent", readerSilent, false)
		close(silent)
		check("away again", time.Second, true)
	})
}
