package systemd

import (
	"context"
	"errors"
	"sync"

	"github.com/godbus/dbus/v5"
)

// errJobLost says that the connection went while a job ran: look at the unit instead.
var errJobLost = errors.New("connection to systemd lost while the job ran")

// jobLost is the result given to waiters then; systemd never uses the empty string.
const jobLost = ""

// jobTable brings together job paths (from replies) and results (from signals), whichever
// comes first.
type jobTable struct {
	mu      sync.Mutex
	pending int // calls whose reply has not come yet
	waiting map[dbus.ObjectPath]chan string
	early   map[dbus.ObjectPath]string
}

func newJobTable() *jobTable {
	return &jobTable{waiting: map[dbus.ObjectPath]chan string{}, early: map[dbus.ObjectPath]string{}}
}

// run makes a call that returns a job and waits for the job's result.
func (t *jobTable) run(ctx context.Context, call func() (dbus.ObjectPath, error)) (string, error) {
	t.mu.Lock()
	t.pending++
	t.mu.Unlock()
	job, err := call()
	result := t.expect(job, err == nil)
	if err != nil {
		return "", err
	}
	select {
	case r := <-result:
		if r == jobLost {
			return "", errJobLost
		}
		return r, nil
	case <-ctx.Done():
		t.drop(job)
		return "", ctx.Err()
	}
}

func (t *jobTable) expect(job dbus.ObjectPath, ok bool) <-chan string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pending--
	result := make(chan string, 1)
	if ok {
		if r, done := t.early[job]; done {
			result <- r
		} else {
			t.waiting[job] = result
		}
		delete(t.early, job)
	}
	if t.pending == 0 {
		clear(t.early)
	}
	return result
}

func (t *jobTable) finish(job dbus.ObjectPath, result string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if waiter, ok := t.waiting[job]; ok {
		waiter <- result
		delete(t.waiting, job)
	} else if t.pending > 0 {
		t.early[job] = result
	}
}

func (t *jobTable) drop(job dbus.ObjectPath) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.waiting, job)
}

// lose wakes every waiter: results may have been missed.
func (t *jobTable) lose() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for job, waiter := range t.waiting {
		waiter <- jobLost
		delete(t.waiting, job)
	}
}
