package keylock

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestMutex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Mutex
		unlock := m.Lock("a")
		m.Lock("b")()
		got := make(chan func())
		go func() { got <- m.Lock("a") }()
		synctest.Wait()
		select {
		case <-got:
			t.Fatal("two have one name")
		default:
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := m.LockContext(ctx, "a"); !errors.Is(err, context.Canceled) {
			t.Errorf("a wait that was given up: %v", err)
		}
		unlock()
		(<-got)()
		if len(m.locks) != 0 {
			t.Errorf("locks of nobody are kept: %v", m.locks)
		}
	})
}
