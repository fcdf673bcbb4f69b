package stuck

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls Calls
		var dropped []int
		drop := func(n int) { dropped = append(dropped, n) }
		answer := make(chan error)
		slow := func() (int, error) { return 7, <-answer }
		at := func(n int, err error) func() (int, error) { return func() (int, error) { return n, err } }

		if n, err := Do(t.Context(), &calls, "a", at(3, nil), drop); n != 3 || err != nil {
			t.Errorf("a call that returns: %d %v", n, err)
		}
		wrong := errors.New("wrong")
		if _, err := Do(t.Context(), &calls, "a", at(0, wrong), drop); !errors.Is(err, wrong) {
			t.Errorf("a call that fails: %v", err)
		}
		for _, end := range []error{nil, wrong} {
			ctx, cancel := context.WithCancel(t.Context())
			go func() { synctest.Wait(); cancel() }()
			if _, err := Do(ctx, &calls, "a", slow, drop); !errors.Is(err, context.Canceled) {
				t.Errorf("a call that hangs: %v", err)
			}
			if _, err := Do(t.Context(), &calls, "a", at(3, nil), drop); !errors.Is(err, ErrBusy) {
				t.Errorf("beside it: %v", err)
			}
			if n, err := Do(t.Context(), &calls, "b", at(4, nil), drop); n != 4 || err != nil {
				t.Errorf("another one beside it: %d %v", n, err)
			}
			answer <- end
			synctest.Wait()
		}
		if len(dropped) != 1 || dropped[0] != 7 {
			t.Errorf("dropped %v, want 7: once it succeeded, once not", dropped)
		}
		if n, err := Do(t.Context(), &calls, "a", at(5, nil), drop); n != 5 || err != nil {
			t.Errorf("after it: %d %v", n, err)
		}
	})
}
