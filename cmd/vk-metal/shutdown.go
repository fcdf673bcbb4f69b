package main

import (
	"context"
	"errors"

	"github.com/vk-metal/vk-metal/internal/shutdown"
)

// runShutdown ends pods before the server goes down, if the configuration gives them time.
func (a *agent) runShutdown(ctx context.Context, ready func()) error {
	ready()
	grace, critical := a.cfg.Shutdown.GracePeriod, a.cfg.Shutdown.CriticalPods
	if grace == 0 {
		<-ctx.Done()
		return nil
	}
	err := shutdown.Run(ctx, shutdown.Options{
		Delay: grace, Log: a.log,
		Begin: func(ctx context.Context) {
			done := make(chan struct{})
			go func() {
				defer close(done)
				a.pods.provider.Shutdown(ctx, grace, critical)
			}()
			a.node.Changed()
			<-done
		},
		Cancelled: func() {
			a.pods.provider.ShutdownCancelled()
			a.node.Changed()
		},
	})
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// stays fails while the server is going down.
func (a *agent) stays(context.Context) error {
	if a.pods.provider != nil && a.pods.provider.ShuttingDown() {
		return errors.New("node is shutting down")
	}
	return nil
}
