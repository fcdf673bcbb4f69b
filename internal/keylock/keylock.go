// Package keylock locks by name.
package keylock

import "sync"

// Mutex is a lock for each name; the zero value has none locked. It keeps what it has seen:
// names are to be few, such as those of a node's volumes.
type Mutex struct{ locks sync.Map }

// Lock waits until nobody else has the name.
func (m *Mutex) Lock(name string) (unlock func()) {
	l, _ := m.locks.LoadOrStore(name, &sync.Mutex{})
	mu := l.(*sync.Mutex) //nolint:forcetypeassert // nothing else is stored
	mu.Lock()
	return mu.Unlock
}
