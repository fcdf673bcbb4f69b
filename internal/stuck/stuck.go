// Package stuck makes calls into the kernel that may take for ever, since the server of a file
// system is away. Nothing can end such a call: whoever made it can only stop waiting.
package stuck

import (
	"context"
	"errors"
	"sync"
)

// Calls are those that are under way. It is ready to use.
type Calls struct{ keys sync.Map }

// ErrBusy says that a former call has not returned yet. Each keeps a thread.
var ErrBusy = errors.New("the kernel has not answered a former try yet")

// Do makes the call and waits for it no longer than ctx, whose error it returns then; a call that
// succeeds later has its value given to drop. There is one call at a time under a key: while a
// former one goes on, the error is ErrBusy.
func Do[T any](ctx context.Context, c *Calls, key string, call func() (T, error), drop func(T)) (T, error) {
	var none T
	if _, busy := c.keys.LoadOrStore(key, nil); busy {
		return none, ErrBusy
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result)
	go func() {
		value, err := call()
		c.keys.Delete(key)
		select {
		case done <- result{value, err}:
		case <-ctx.Done():
			if err == nil {
				drop(value)
			}
		}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}
