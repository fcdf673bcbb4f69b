package logs

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestWatchWithoutInotify looks again and again, and stops with ctx.
func TestWatchWithoutInotify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &watch{}
		defer w.close()
		begun := time.Now()
		if err := w.wait(t.Context(), 0); err != nil || time.Since(begun) != pollEvery {
			t.Errorf("wait = %v after %s", err, time.Since(begun))
		}
		if err := w.wait(t.Context(), time.Millisecond); err != nil || time.Since(begun) != pollEvery+time.Millisecond {
			t.Errorf("wait = %v after %s", err, time.Since(begun))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := w.wait(ctx, 0); !errors.Is(err, context.Canceled) {
			t.Errorf("wait = %v after the end", err)
		}
	})
}
