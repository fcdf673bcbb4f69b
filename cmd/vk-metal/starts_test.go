package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestHoldBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "starts.json")
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	start := func(after, want time.Duration) {
		t.Helper()
		now = now.Add(after)
		if got, err := holdBack(path, now); err != nil || got != want {
			t.Errorf("holdBack = %s, %v, want %s", got, err, want)
		}
	}
	for range startsKept {
		start(time.Second, 0)
	}
	start(time.Second, startsPause)
	start(11*time.Second, startsPause) // still too often
	start(-time.Hour, 0)               // the clock was set back
	start(2*time.Hour, 0)
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	start(time.Second, 0)
	for range 100 { // a restart now and then is never held up
		start(startsWithin/2, 0)
	}
	if info, err := os.Stat(path); err != nil || info.Size() > 1000 {
		t.Errorf("the file grows: %v, %v", info, err)
	}
}
