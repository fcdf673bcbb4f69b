package probes

import (
	"container/heap"
	"time"
)

// grid is what the times of a probe's runs after the first are rounded to, so that the
// probes of a node wake it together: 50 times a second, however many they are. A period
// is a multiple of it, and stays exact.
const grid = 20 * time.Millisecond

// agenda says when which worker is due, by one timer. Prober.mu guards it.
type agenda struct {
	began time.Time // where the grid begins
	timer *time.Timer
	queue queue
}

// newAgenda calls wake when workers are due, for take; it may be called in vain.
func newAgenda(began time.Time, wake func()) *agenda {
	timer := time.AfterFunc(time.Hour, wake)
	timer.Stop()
	return &agenda{began: began, timer: timer}
}

// onGrid is the time of the grid that is next to t, before or after it.
func (a *agenda) onGrid(t time.Time) time.Time {
	return a.began.Add(t.Sub(a.began).Round(grid))
}

// add sets when w is due; one that is in the agenda already is moved.
func (a *agenda) add(w *worker, due time.Time) {
	w.due = due
	if w.place < 0 {
		heap.Push(&a.queue, w)
	} else {
		heap.Fix(&a.queue, w.place)
	}
	if w.place == 0 {
		a.timer.Reset(time.Until(due))
	}
}

func (a *agenda) remove(w *worker) {
	if w.place >= 0 {
		heap.Remove(&a.queue, w.place)
	}
}

// take removes those that are due and sets the timer for the next.
func (a *agenda) take(now time.Time) (due []*worker) {
	for len(a.queue) > 0 && !a.queue[0].due.After(now) {
		due = append(due, heap.Pop(&a.queue).(*worker))
	}
	if len(a.queue) > 0 {
		a.timer.Reset(time.Until(a.queue[0].due))
	}
	return due
}

// queue is a heap by due time. It implements heap.Interface.
type queue []*worker

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

func (q *queue) Push(w any) {
	w.(*worker).place = len(*q)
	*q = append(*q, w.(*worker))
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	w := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	w.place = -1
	return w
}
