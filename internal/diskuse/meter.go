package diskuse

import (
	"context"
	"sync"
	"time"

	"github.com/vk-metal/vk-metal/internal/keylock"
)

const (
	// meterShare bounds the cost: a tree that takes long to measure is measured less often, no more
	// than one part in meterShare of the time.
	meterShare = 50
	// meterBeside is how many trees are measured at a time for callers that do not wait, and
	// meterLimit bounds one such measurement.
	meterBeside = 2
	meterLimit  = 5 * time.Minute
	// meterForget is how long a tree is remembered that nobody asks for.
	meterForget = 10 * time.Minute
)

// Sample is what a tree took at a time.
type Sample struct {
	Usage
	Time time.Time
}

// Meter measures trees, each once for all who ask. It is safe for concurrent use; the zero value
// has measured nothing.
type Meter struct {
	measuring keylock.Mutex // by tree

	mu      sync.Mutex
	trees   map[string]*metered
	waiting []string // for a measurement beside their callers
	beside  int      // goroutines that do so
	swept   time.Time
}

type metered struct {
	Sample
	took    time.Duration // 0: not measured yet
	asked   time.Time
	waiting bool
}

// Measure returns what the tree takes. Figures are no older than age, unless they take long to get.
func (m *Meter) Measure(ctx context.Context, dir string, age time.Duration) (Sample, error) {
	if sample, fresh := m.kept(dir, age); fresh {
		return sample, nil
	}
	unlock, err := m.measuring.LockContext(ctx, dir)
	if err != nil {
		return Sample{}, err
	}
	defer unlock()
	if sample, fresh := m.kept(dir, age); fresh {
		return sample, nil // of who was there before
	}
	begun := time.Now()
	used, err := Measure(ctx, dir)
	if err != nil {
		return Sample{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	tree := m.tree(dir)
	tree.Sample, tree.took = Sample{used, begun}, max(1, time.Since(begun))
	return tree.Sample, nil
}

// Newest returns at once what is known of the tree, false if nothing is. What is older than age is
// measured beside the caller.
func (m *Meter) Newest(dir string, age time.Duration) (Sample, bool) {
	sample, fresh := m.kept(dir, age)
	m.mu.Lock()
	defer m.mu.Unlock()
	tree := m.tree(dir)
	if !fresh && !tree.waiting {
		tree.waiting = true
		m.waiting = append(m.waiting, dir)
		if m.beside < meterBeside {
			m.beside++
			go m.work(age)
		}
	}
	return sample, tree.took > 0
}

// work measures until nothing waits. What cannot be measured is tried again when it is asked for.
func (m *Meter) work(age time.Duration) {
	for {
		dir := m.take()
		if dir == "" {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), meterLimit)
		_, _ = m.Measure(ctx, dir, age) //nolint:errcheck // there are no figures then
		cancel()
		m.mu.Lock()
		m.tree(dir).waiting = false
		m.mu.Unlock()
	}
}

// take returns who waits longest; none ends the caller.
func (m *Meter) take() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.waiting) == 0 {
		m.beside--
		return ""
	}
	dir := m.waiting[0]
	m.waiting = m.waiting[1:]
	return dir
}

// kept returns what is known, and whether it need not be measured anew.
func (m *Meter) kept(dir string, age time.Duration) (sample Sample, fresh bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	tree, now := m.tree(dir), time.Now()
	tree.asked = now
	m.sweep(now)
	return tree.Sample, tree.took > 0 && now.Sub(tree.Time) < max(age, meterShare*tree.took)
}

// tree is to be called with the lock.
func (m *Meter) tree(dir string) *metered {
	if m.trees == nil {
		m.trees = map[string]*metered{}
	}
	if m.trees[dir] == nil {
		m.trees[dir] = &metered{asked: time.Now()}
	}
	return m.trees[dir]
}

// sweep forgets trees that nobody asks for: most are gone.
func (m *Meter) sweep(now time.Time) {
	if now.Sub(m.swept) < meterForget {
		return
	}
	m.swept = now
	for dir, tree := range m.trees {
		if !tree.waiting && now.Sub(tree.asked) > max(meterForget, meterShare*tree.took) {
			delete(m.trees, dir)
		}
	}
}
