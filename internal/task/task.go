// Package task runs the agent's parts under one roof: each has Run, Ready and a name,
// the process is ready once all are, and the first that ends takes the others with it.
// It knows nothing of what the tasks do.
package task

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Task is a part of the agent that runs until its context ends.
type Task interface {
	// Run blocks until ctx ends and then returns nil; any earlier return ends the agent.
	Run(ctx context.Context) error
	// Ready is closed once the part does its work.
	Ready() <-chan struct{}
	// String names the task in logs.
	String() string
}

// errEnded is the cause of a task that returned nil although nobody asked it to stop.
var errEnded = errors.New("ended by itself")

// Run runs all tasks until ctx ends or one of them does. onReady is called once, when
// every task is ready. The error names the task.
func Run(ctx context.Context, log *slog.Logger, onReady func(), tasks ...Task) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, t := range tasks {
		group.Go(func() error { return runOne(ctx, log, t) })
	}
	group.Go(func() error {
		for _, t := range tasks {
			select {
			case <-t.Ready():
				log.Debug("task ready", "task", t.String())
			case <-ctx.Done():
				return nil
			}
		}
		onReady()
		return nil
	})
	return group.Wait()
}

func runOne(ctx context.Context, log *slog.Logger, t Task) error {
	err := t.Run(ctx)
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		log.Debug("task stopped", "task", t.String())
		return nil
	}
	if err == nil {
		err = errEnded
	}
	return fmt.Errorf("run %s: %w", t, err)
}

// New makes a Task of a function, which calls ready (any number of times) once it does its work.
func New(name string, run func(ctx context.Context, ready func()) error) Task {
	return &funcTask{name: name, run: run, ready: make(chan struct{})}
}

type funcTask struct {
	name  string
	run   func(ctx context.Context, ready func()) error
	once  sync.Once
	ready chan struct{}
}

// Run implements Task.
func (t *funcTask) Run(ctx context.Context) error {
	return t.run(ctx, func() { t.once.Do(func() { close(t.ready) }) })
}

// Ready implements Task.
func (t *funcTask) Ready() <-chan struct{} { return t.ready }

// String implements Task.
func (t *funcTask) String() string { return t.name }
