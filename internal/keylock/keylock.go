// Package keylock locks by name.
package keylock

import (
	"context"
	"sync"
)

// Mutex is a lock for each name, kept only while somebody has it or waits for it. The zero
// value has none locked.
type Mutex struct {
	mu    sync.Mutex
	locks map[string]*lock
}

type lock struct {
	taken chan struct{} // holds one while somebody has the lock
	users int
}

// Lock waits until nobody else has the name.
func (m *Mutex) Lock(name string) (unlock func()) {
	unlock, _ = m.LockContext(context.Background(), name)
	return unlock
}

// LockContext waits until nobody else has the name, or for the end of ctx, whose error it returns.
func (m *Mutex) LockContext(ctx context.Context, name string) (unlock func(), err error) {
	l := m.join(name)
	select {
	case l.taken <- struct{}{}:
		return func() { <-l.taken; m.leave(name, l) }, nil
	case <-ctx.Done():
		m.leave(name, l)
		return nil, ctx.Err()
	}
}

func (m *Mutex) join(name string) *lock {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.locks[name]
	if l == nil {
		l = &lock{taken: make(chan struct{}, 1)}
		if m.locks == nil {
			m.locks = map[string]*lock{}
		}
		m.locks[name] = l
	}
	l.users++
	return l
}

func (m *Mutex) leave(name string, l *lock) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(m.locks, name)
	}
}
