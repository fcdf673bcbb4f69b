// Package inmachine runs the agent's own tests that need systemd as PID 1 inside a
// throw-away machine, where nothing may be skipped.
package inmachine
