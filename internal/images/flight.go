package images

import (
	"context"
	"sync"
)

// flights makes concurrent pulls of one key one pull. The pull is not bound to the first
// caller's context: it ends when the last waiter has gone.
type flights struct {
	mu  sync.Mutex
	run map[string]*flight
}

type flight struct {
	done    chan struct{}
	cancel  context.CancelFunc
	waiters int
	image   Record
	err     error
}

func (f *flights) do(ctx context.Context, key string, pull func(context.Context) (Record, error)) (Record, error) {
	fl := f.join(ctx, key, pull)
	defer f.leave(key, fl)
	select {
	case <-fl.done:
		return fl.image, fl.err
	case <-ctx.Done():
		return Record{}, context.Cause(ctx)
	}
}

func (f *flights) join(ctx context.Context, key string, pull func(context.Context) (Record, error)) *flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.run[key]; fl != nil {
		fl.waiters++
		return fl
	}
	if f.run == nil {
		f.run = map[string]*flight{}
	}
	pullCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	fl := &flight{done: make(chan struct{}), cancel: cancel, waiters: 1}
	f.run[key] = fl
	go func() {
		defer close(fl.done)
		fl.image, fl.err = pull(pullCtx)
	}()
	return fl
}

// leave ends the pull with its last waiter; a later caller starts a new one.
func (f *flights) leave(key string, fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.waiters--; fl.waiters > 0 {
		return
	}
	fl.cancel()
	if f.run[key] == fl {
		delete(f.run, key)
	}
}

// messages remembers the last failure per pod and reference, for the text of a back-off.
type messages struct {
	m sync.Map
}

func (s *messages) set(key, text string) { s.m.Store(key, text) }

func (s *messages) clear(key string) { s.m.Delete(key) }

func (s *messages) get(key string) string {
	v, _ := s.m.Load(key)
	text, _ := v.(string)
	return text
}

// keep drops the others.
func (s *messages) keep(wanted func(key string) bool) {
	s.m.Range(func(key, _ any) bool {
		if !wanted(key.(string)) {
			s.m.Delete(key)
		}
		return true
	})
}
