package provider

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-metal/vk-metal/internal/staticpods"
)

// StaticSource follows a directory of manifests until ctx ends; changed gets each new set.
type StaticSource func(ctx context.Context, changed func(staticpods.Set)) error

// statics are the pods that this node runs without being told by the API.
type statics struct {
	mu    sync.Mutex
	set   staticpods.Set
	known bool // set has been read
	swept bool // what agents before have left has been looked at
	dirty chan struct{}
}

func (s *statics) kick() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

func (s *statics) get() (staticpods.Set, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.set, s.known
}

// runStatic keeps the workers of static pods, and their mirrors in the API, in step with
// the manifests. It needs no API server.
func (p *Provider) runStatic(ctx context.Context) error {
	if p.deps.Static == nil {
		p.staticSet(staticpods.Set{Complete: true})
	} else {
		p.group.Go(func() {
			if err := p.deps.Static(ctx, p.staticSet); err != nil && ctx.Err() == nil {
				p.log.Error("Static pods are not followed any more", "err", err)
			}
		})
	}
	for {
		var retry <-chan time.Time
		if err := p.syncStatic(ctx); err != nil && ctx.Err() == nil {
			p.log.Warn("Cannot keep the mirrors of static pods", "err", err)
			retry = time.After(mirrorRetry)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.static.dirty:
		case <-retry:
		}
	}
}

// mirrorRetry is how long a failed change of a mirror pod waits.
const mirrorRetry = 3 * time.Second

func (p *Provider) staticSet(set staticpods.Set) {
	p.static.mu.Lock()
	p.static.set, p.static.known = set, true
	p.static.mu.Unlock()
	p.static.kick()
}

// syncStatic ends what has no manifest, starts what has one, and then sees to the mirrors.
func (p *Provider) syncStatic(ctx context.Context) error {
	set, known := p.static.get()
	if !known {
		return nil
	}
	p.startStatic(set)
	if set.Complete && !p.static.swept {
		if err := p.sweepStatic(set); err != nil {
			return err
		}
		p.static.swept = true
	}
	return p.syncMirrors(ctx)
}

// startStatic ends workers whose manifest is gone or was changed, and starts new ones once
// the one before them of the same name has left nothing.
func (p *Provider) startStatic(set staticpods.Set) {
	wanted := map[types.UID]bool{}
	for _, pod := range set.Pods {
		wanted[pod.UID] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	busy := map[types.NamespacedName]bool{}
	for uid, w := range p.workers {
		if !staticpods.IsUID(uid) {
			continue
		}
		if !wanted[uid] {
			w.setGone(nil)
		}
		pod, _ := w.current()
		busy[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}] = true
	}
	for _, pod := range set.Pods {
		if !busy[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}] {
			p.startWorker(pod, false)
		}
	}
}

// sweepStatic ends static pods of agents before whose manifests have gone meanwhile.
func (p *Provider) sweepStatic(set staticpods.Set) error {
	wanted := map[types.UID]bool{}
	for _, pod := range set.Pods {
		wanted[pod.UID] = true
	}
	entries, err := os.ReadDir(filepath.Dir(p.deps.Layout.PodRun("x")))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list pods' directories: %w", err)
	}
	for _, e := range entries {
		uid := types.UID(e.Name())
		if !staticpods.IsUID(uid) || wanted[uid] {
			continue
		}
		pod, err := loadPod(p.deps.Layout, e.Name())
		if err != nil {
			pod = &corev1.Pod{}
			pod.UID = uid
		}
		p.mu.Lock()
		if p.workers[uid] == nil {
			p.log.Info("Ending a static pod without a manifest", "pod", pod.Namespace+"/"+pod.Name, "uid", uid)
			p.startWorker(pod, true)
		}
		p.mu.Unlock()
	}
	return nil
}
