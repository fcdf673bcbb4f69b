// Package logs is the agent's side of container logs: it makes the stream
// directories that the log writer empties, waits until a log is complete, and reads
// CRI log files the way `kubectl logs` asks for. It must not know units, pods'
// lifecycle or the writer's insides; it shares only package logstream with it.
package logs
