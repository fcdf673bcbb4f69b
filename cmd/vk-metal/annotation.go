package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// nodeAnnotation is one annotation of our Node that tells the other nodes something.
type nodeAnnotation struct {
	a    *agent
	key  string
	wake chan struct{}

	mu    sync.Mutex
	value string
	told  bool // the value is known
}

func newNodeAnnotation(a *agent, key string) *nodeAnnotation {
	return &nodeAnnotation{a: a, key: key, wake: make(chan struct{}, 1)}
}

// set says what it has to be; "" is none. Before the first call it is left alone.
func (n *nodeAnnotation) set(value string) {
	n.mu.Lock()
	n.value, n.told = value, true
	n.mu.Unlock()
	n.look()
}

// look has it compared with our Node as it was last seen.
func (n *nodeAnnotation) look() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// annotationRetry is how long a refused patch of our Node waits.
const annotationRetry = 5 * time.Second

// keep keeps it as it has to be, until ctx ends.
func (n *nodeAnnotation) keep(ctx context.Context, ready func()) error {
	ready()
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.wake:
		case <-again:
		}
		again = nil
		if err := n.patch(ctx); err != nil && ctx.Err() == nil {
			n.a.log.Warn("cannot tell the other nodes by an annotation", "annotation", n.key, "err", err)
			again = time.After(annotationRetry)
		}
	}
}

func (n *nodeAnnotation) patch(ctx context.Context) error {
	self := n.a.self()
	n.mu.Lock()
	want, told := n.value, n.told
	n.mu.Unlock()
	if !told || self == nil || self.Annotations[n.key] == want {
		return nil
	}
	var value any
	if want != "" {
		value = want
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{n.key: value}}})
	if err != nil {
		return fmt.Errorf("encode the annotation of the Node: %w", err)
	}
	if _, err := n.a.client.CoreV1().Nodes().Patch(ctx, n.a.name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("annotate the Node: %w", err)
	}
	return nil
}
