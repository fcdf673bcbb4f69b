// Package evictor keeps the server from running out of memory, disk and processes: it looks
// at what is left, frees what nothing uses, and ends pods when that is not enough. What is
// short and who goes is decided by internal/pressure; how pods end is the provider's business.
package evictor

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-metal/vk-metal/internal/pressure"
)

// Intervals of a kubelet: no kernel tells of a file system that fills up, nor of processes.
const (
	lookEvery = 10 * time.Second
	// cleanupWait is how long the room that a pod leaves is waited for before another goes.
	cleanupWait = 30 * time.Second
)

// Pods are the pods of this server.
type Pods interface {
	// Candidates are the pods that may be ended, with what they use of the signal's resource.
	Candidates(ctx context.Context, s pressure.Signal) ([]pressure.Candidate, error)
	// Evict begins to end a pod, which has at most grace for it. The channel is closed when
	// nothing of it takes room any more; it is nil if the pod cannot be ended.
	Evict(uid types.UID, message string, grace time.Duration) <-chan struct{}
}

// Options say what to look at and what to do.
type Options struct {
	Settings pressure.Settings
	// Observe looks at what is left; what cannot be seen is left out.
	Observe func(ctx context.Context) pressure.Observations
	// Reclaim returns how to free what nothing uses of the signal's resource, nil if there is
	// nothing of that kind.
	Reclaim func(s pressure.Signal) func(ctx context.Context) error
	Pods    Pods
	// Evicted is told of each eviction's signal; may be nil.
	Evicted func(s pressure.Signal)
	// Wake asks for a look at once; nil leaves it at the interval.
	Wake <-chan struct{}
	// Changed is told when other conditions hold than before; Event tells of the Node. Neither
	// blocks.
	Changed func()
	Event   func(kind, reason, message string)
	Log     *slog.Logger
}

// Evictor is the loop. It is made by New.
type Evictor struct {
	o     Options
	state pressure.State // the loop's

	mu      sync.Mutex
	verdict pressure.Verdict
}

// New makes an Evictor; it does nothing before Run.
func New(o Options) *Evictor { return &Evictor{o: o} }

// Conditions are the conditions of the node that hold now, sorted.
func (e *Evictor) Conditions() []corev1.NodeConditionType {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.verdict.Conditions)
}

// Run looks every ten seconds, and when it is woken, until ctx ends.
func (e *Evictor) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		if freed := e.round(ctx); freed != nil {
			await(ctx, freed)
			continue // there may still be too little
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-e.o.Wake:
		}
	}
	return nil
}

// await waits for the room that a pod leaves.
func await(ctx context.Context, freed <-chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, cleanupWait)
	defer cancel()
	select {
	case <-ctx.Done():
	case <-freed:
	}
}

// round looks once and ends one pod at most; it returns when that one has left its room.
func (e *Evictor) round(ctx context.Context) (freed <-chan struct{}) {
	seen := e.o.Observe(ctx)
	verdict := e.judge(seen)
	if len(verdict.Starved) == 0 || ctx.Err() != nil {
		return nil
	}
	starved := verdict.Starved[0]
	name := starved.Signal.Resource()
	e.o.Log.Warn("The node is short of a resource", "resource", name, "signal", starved.Signal,
		"available", seen[starved.Signal].Available, "threshold", starved.Value.String())
	e.o.Event(corev1.EventTypeWarning, "EvictionThresholdMet", fmt.Sprintf("Attempting to reclaim %s", name))
	if e.reclaim(ctx, starved) {
		return nil
	}
	return e.evict(ctx, starved, seen)
}

func (e *Evictor) judge(seen pressure.Observations) pressure.Verdict {
	var verdict pressure.Verdict
	e.state, verdict = pressure.Next(e.o.Settings, e.state, seen, time.Now())
	e.mu.Lock()
	before := e.verdict
	e.verdict = verdict
	e.mu.Unlock()
	if !slices.Equal(before.Conditions, verdict.Conditions) {
		e.o.Log.Info("The pressure on the node has changed", "conditions", verdict.Conditions)
		e.o.Changed()
	}
	return verdict
}

// reclaim frees what nothing uses, and says whether that is enough.
func (e *Evictor) reclaim(ctx context.Context, starved pressure.Threshold) bool {
	free := e.o.Reclaim(starved.Signal)
	if free == nil {
		return false
	}
	if err := free(ctx); err != nil && ctx.Err() == nil {
		e.o.Log.Warn("Cannot free what nothing uses", "resource", starved.Signal.Resource(), "err", err)
	}
	return len(pressure.Met(e.o.Settings.Thresholds, e.o.Observe(ctx), true)) == 0
}

// evict ends the first candidate that can be ended.
func (e *Evictor) evict(ctx context.Context, starved pressure.Threshold, seen pressure.Observations) <-chan struct{} {
	candidates, err := e.o.Pods.Candidates(ctx, starved.Signal)
	if err != nil {
		e.o.Log.Error("Cannot tell which pod has to go", "err", err)
		return nil
	}
	ranked := pressure.Rank(starved.Signal, candidates)
	for _, c := range ranked {
		message := pressure.Message(starved, c, seen)
		if freed := e.o.Pods.Evict(c.Pod.UID, message, e.o.Settings.PodGrace(starved, c.Pod)); freed != nil {
			if e.o.Evicted != nil {
				e.o.Evicted(starved.Signal)
			}
			e.o.Log.Warn("Pod is evicted", "pod", c.Pod.Namespace+"/"+c.Pod.Name, "uid", c.Pod.UID, "message", strings.TrimSpace(message))
			return freed
		}
	}
	e.o.Log.Error("The node is short of a resource and no pod can be ended", "resource", starved.Signal.Resource())
	return nil
}
