package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// systemd starts the agent again at once (RestartSec=100ms) and for ever: a crash must cost
// pods as little as can be, and a node must never be given up. An agent that cannot start at
// all would then take a core for nothing, so it holds itself back.
const (
	startsKept   = 5           // as many may follow one another at once
	startsWithin = time.Minute // and are forgotten after that
	startsPause  = 10 * time.Second
)

// startDelay is how long a start at now waits, given the ones before, oldest first.
func startDelay(before []time.Time, now time.Time) time.Duration {
	recent := 0
	for _, at := range before {
		// A clock that was set back must not hold the agent up.
		if age := now.Sub(at); age >= 0 && age < startsWithin {
			recent++
		}
	}
	if recent < startsKept {
		return 0
	}
	return startsPause
}

// holdBack notes this start in the file and says how long to wait for the ones before. The
// file need not be there, and a damaged one counts as none.
func holdBack(path string, now time.Time) (time.Duration, error) {
	var starts []time.Time
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("read the last starts: %w", err)
	}
	if err := json.Unmarshal(data, &starts); err != nil {
		starts = nil
	}
	delay := startDelay(starts, now)
	starts = append(starts, now)
	if data, err = json.Marshal(starts[max(0, len(starts)-startsKept):]); err != nil {
		return delay, fmt.Errorf("note this start: %w", err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return delay, fmt.Errorf("note this start: %w", err)
	}
	return delay, nil
}

// awaitTurn waits as long as holdBack says.
func (a *agent) awaitTurn(ctx context.Context) {
	delay, err := holdBack(filepath.Join(a.g.layout.Run, "starts.json"), time.Now())
	if err != nil {
		a.log.Warn("cannot tell how often the agent was started", "err", err)
	}
	if delay == 0 {
		return
	}
	a.log.Warn("started too often, waiting", "for", delay)
	select {
	case <-time.After(delay):
	case <-ctx.Done():
	}
}
