package provider

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

// evictFile has the pod's evictRecord: an eviction is never taken back.
const evictFile = "evict.json"

// evictRecord is why the node ends a pod, and how long it has at most.
type evictRecord struct {
	podplan.Ending
	Grace time.Duration `json:"grace"`
}

func (w *worker) evictPath() string {
	return filepath.Join(w.p.deps.Layout.PodRun(string(w.uid)), evictFile)
}

func (w *worker) loadEviction() error {
	rec := &evictRecord{}
	err := readJSON(w.evictPath(), rec)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read why the pod was evicted: %w", err)
	}
	w.evicted = rec
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.eviction == nil {
		w.eviction = rec // whoever asks again is not the first
	}
	return nil
}

// evict asks for the end of the pod; the first to ask wins, and is told so.
func (w *worker) evict(rec evictRecord) (first bool) {
	w.mu.Lock()
	if first = w.eviction == nil; first {
		w.eviction = &rec
	}
	w.mu.Unlock()
	w.wakeUp()
	return first
}

// takeEviction writes down what was asked for, before anything is done about it.
func (w *worker) takeEviction() error {
	w.mu.Lock()
	asked := w.eviction
	w.mu.Unlock()
	if w.evicted != nil || asked == nil {
		return nil
	}
	if err := writeJSON(w.evictPath(), asked); err != nil {
		return err
	}
	w.evicted = asked
	return nil
}

// showEnd tells those who wait for the pod's end.
func (w *worker) showEnd(d podplan.Decision, reported bool) {
	if !d.Done {
		return
	}
	closeOnce(w.dead)
	if reported {
		closeOnce(w.told)
	}
}

// closeOnce closes a channel that only the loop closes.
func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}
