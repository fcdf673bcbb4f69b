package task

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func blocking(name string, after time.Duration) Task {
	return New(name, func(ctx context.Context, ready func()) error {
		select {
		case <-time.After(after):
			ready()
			ready()
		case <-ctx.Done():
			return ctx.Err()
		}
		<-ctx.Done()
		return nil
	})
}

func TestReadyOnceAllAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		var readyAfter time.Duration
		done := make(chan error)
		go func() {
			done <- Run(ctx, quiet(), func() { readyAfter = time.Since(start) },
				blocking("slow", 3*time.Second), blocking("fast", time.Second))
		}()
		time.Sleep(5 * time.Second)
		cancel()
		if err := <-done; err != nil {
			t.Fatalf("Run: %v", err)
		}
		if readyAfter != 3*time.Second {
			t.Errorf("ready after %v, want 3s", readyAfter)
		}
	})
}

func TestFirstEndTakesTheOthersWithIt(t *testing.T) {
	boom := errors.New("boom")
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"with an error":    {boom, "run bad: boom"},
		"without an error": {nil, "run bad: ended by itself"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := New("bad", func(context.Context, func()) error { return tc.err })
			err := Run(t.Context(), quiet(), func() { t.Error("ready") }, blocking("good", time.Hour), bad)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Run = %v, want %q", err, tc.want)
			}
		})
	}
}
