package provider

import (
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/labels"
)

// Bounds of what is taken for work and not for a hang. One look of a worker may start
// several containers, each for startTimeout; the kubelet allows a relist three minutes.
const (
	pulseEvery   = 5 * time.Second
	readerSilent = 30 * time.Second
	lookTakes    = 3 * time.Minute
)

// pulse is when something last showed that it works, or began what it is at.
type pulse struct {
	mu sync.Mutex
	at time.Time
}

func (p *pulse) beat() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at = time.Now()
}

func (p *pulse) rest() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at = time.Time{}
}

// older says whether the last beat is longer ago than bound; a pulse at rest never is.
func (p *pulse) older(bound time.Duration) (age time.Duration, old bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at.IsZero() {
		return 0, false
	}
	age = time.Since(p.at)
	return age.Round(time.Second), age > bound
}

// Alive fails when a part of the provider hangs: the reader of unit events, or a pod's
// worker. It blocks while the provider's lock or the informer's store cannot be had, which
// is an answer to a watchdog as well.
func (p *Provider) Alive() error {
	if age, old := p.reader.older(readerSilent); old {
		return fmt.Errorf("the reader of unit events has been silent for %s", age)
	}
	for _, w := range p.all() {
		if age, old := w.looking.older(lookTakes); old {
			return fmt.Errorf("the worker of pod %s has been looking at it for %s", w.uid, age)
		}
		w.current() // takes its lock
	}
	p.mu.Lock()
	pods := p.pods
	p.mu.Unlock()
	if pods == nil {
		return nil // not running yet
	}
	if _, err := pods.List(labels.Nothing()); err != nil {
		return fmt.Errorf("read the pods' cache: %w", err)
	}
	return nil
}
