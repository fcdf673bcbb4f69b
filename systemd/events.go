package systemd

import (
	"context"
	"sync"
)

// eventQueue takes events from the bus reader without ever blocking it, and folds those
// about one unit that the reader has not fetched yet into one.
type eventQueue struct {
	out chan Event

	mu    sync.Mutex
	all   bool
	index map[string]int
	order []Event
	wake  chan struct{}
}

func newEventQueue() *eventQueue {
	return &eventQueue{out: make(chan Event), index: map[string]int{}, wake: make(chan struct{}, 1)}
}

func (q *eventQueue) add(event Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if event.All {
		q.all, q.order = true, nil
		clear(q.index)
	} else if !q.all {
		if i, ok := q.index[event.Unit]; ok {
			if event.PodUID != "" {
				q.order[i].PodUID = event.PodUID
			}
		} else {
			q.index[event.Unit] = len(q.order)
			q.order = append(q.order, event)
		}
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take empties the queue.
func (q *eventQueue) take() []Event {
	q.mu.Lock()
	defer q.mu.Unlock()
	events := q.order
	if q.all {
		events = []Event{{All: true}}
	}
	q.all, q.order = false, nil
	clear(q.index)
	return events
}

// pump delivers until ctx ends and then closes the channel.
func (q *eventQueue) pump(ctx context.Context) {
	defer close(q.out)
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		}
		for _, event := range q.take() {
			select {
			case q.out <- event:
			case <-ctx.Done():
				return
			}
		}
	}
}
