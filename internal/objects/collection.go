package objects

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/tools/cache"
)

// NotServedError says that the cluster has not the API of a resource: in Kubernetes 1.35 those of
// certificates.k8s.io that are no v1 yet are off by default.
type NotServedError struct {
	Resource string
	// Versions of certificates.k8s.io that would do.
	Versions []string
}

func (e *NotServedError) Error() string {
	return fmt.Sprintf("the cluster does not serve %s of certificates.k8s.io (%s)", e.Resource, strings.Join(e.Versions, ", "))
}

// servedVersion is the first of the versions of certificates.k8s.io in which the cluster has the
// resource; a *NotServedError if there is none.
func servedVersion(client discovery.DiscoveryInterface, resource string, versions ...string) (string, error) {
	for _, version := range versions {
		list, err := client.ServerResourcesForGroupVersion("certificates.k8s.io/" + version)
		if err != nil && !apierrors.IsNotFound(err) {
			return "", fmt.Errorf("discover %s of certificates.k8s.io/%s: %w", resource, version, err)
		}
		if list != nil && slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == resource }) {
			return version, nil
		}
	}
	return "", &NotServedError{Resource: resource, Versions: versions}
}

// api lists and watches one version of a resource.
type api struct {
	list  func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// apiOf forgets the type of a list.
func apiOf[L runtime.Object](list func(context.Context, metav1.ListOptions) (L, error),
	start func(context.Context, metav1.ListOptions) (watch.Interface, error),
) api {
	return api{watch: start, list: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
		l, err := list(ctx, opts)
		return l, err
	}}
}

// collection is what one watch of many objects knows. It is a cache.ReflectorStore for its
// reflector.
type collection struct {
	kind string
	// changed is told each change, nil for what is not there; both are nil at the first answer.
	changed func(before, now metav1.Object)
	stop    context.CancelFunc

	mu      sync.Mutex
	all     map[string]metav1.Object // by namespace/name; nil before the first answer
	lastErr error                    // of discovery, list or watch
	news    chan struct{}            // closed at the next change or error
}

var _ cache.ReflectorStore = (*collection)(nil)

func newCollection(kind string, changed func(before, now metav1.Object)) *collection {
	return &collection{kind: kind, changed: changed, news: make(chan struct{})}
}

// run watches until ctx ends. Which API there is, is asked before each list and watch: until the
// cluster serves one that is tried again with the reflector's delays.
func (c *collection) run(ctx context.Context, client any, open func() (api, error)) {
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			source, err := open()
			if err != nil {
				return nil, c.note(err)
			}
			l, err := source.list(ctx, opts)
			return l, c.note(err)
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			source, err := open()
			if err != nil {
				return nil, c.note(err)
			}
			w, err := source.watch(ctx, opts)
			return w, c.note(err)
		},
	}
	// No expected type: the version may be any that is served.
	r := cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(lw, client), nil, c, cache.ReflectorOptions{Name: c.kind})
	r.RunWithContext(ctx)
}

func (c *collection) note(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastErr = err
	if err != nil {
		c.announce()
	}
	return err
}

// announce wakes who waits for news. The lock is held.
func (c *collection) announce() {
	close(c.news)
	c.news = make(chan struct{})
}

// Add implements cache.ReflectorStore.
func (c *collection) Add(obj any) error { return c.set(obj, false) }

// Update implements cache.ReflectorStore.
func (c *collection) Update(obj any) error { return c.set(obj, false) }

// Delete implements cache.ReflectorStore.
func (c *collection) Delete(obj any) error { return c.set(obj, true) }

// Resync implements cache.ReflectorStore.
func (c *collection) Resync() error { return nil }

func (c *collection) set(obj any, gone bool) error {
	m, ok := obj.(metav1.Object)
	if !ok {
		return fmt.Errorf("watch %s: got a %T", c.kind, obj)
	}
	name := nameOf(m)
	c.mu.Lock()
	if c.all == nil {
		c.all = map[string]metav1.Object{}
	}
	before := c.all[name]
	now := m
	if gone {
		now = nil
		delete(c.all, name)
	} else {
		c.all[name] = m
	}
	c.announce()
	c.mu.Unlock()
	if !sameVersion(before, now) {
		c.changed(before, now)
	}
	return nil
}

// Replace implements cache.ReflectorStore: the answer to a list.
func (c *collection) Replace(list []any, _ string) error {
	all := make(map[string]metav1.Object, len(list))
	for _, obj := range list {
		m, ok := obj.(metav1.Object)
		if !ok {
			return fmt.Errorf("list %s: got a %T", c.kind, obj)
		}
		all[nameOf(m)] = m
	}
	c.mu.Lock()
	before := c.all
	c.all = all
	c.announce()
	c.mu.Unlock()
	if before == nil {
		c.changed(nil, nil)
		return nil
	}
	for name, old := range before {
		if now := all[name]; !sameVersion(old, now) {
			c.changed(old, now)
		}
	}
	for name, now := range all {
		if before[name] == nil {
			c.changed(nil, now)
		}
	}
	return nil
}

func nameOf(m metav1.Object) string { return m.GetNamespace() + "/" + m.GetName() }

// get returns the object of the name, nil if there is none, and what is closed at the next change.
func (c *collection) get(namespace, name string) (metav1.Object, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all[namespace+"/"+name], c.news
}

// list returns all objects.
func (c *collection) list() []metav1.Object {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]metav1.Object, 0, len(c.all))
	for _, m := range c.all {
		out = append(out, m)
	}
	return out
}

// answered waits for the first answer, at most for bound; not if the cluster has not the API.
func (c *collection) answered(ctx context.Context, bound time.Duration) error {
	timer := time.NewTimer(bound)
	defer timer.Stop()
	for {
		c.mu.Lock()
		known, lastErr, news := c.all != nil, c.lastErr, c.news
		c.mu.Unlock()
		var notServed *NotServedError
		switch {
		case known:
			return nil
		case errors.As(lastErr, &notServed):
			return lastErr
		}
		select {
		case <-news:
		case <-ctx.Done():
			return fmt.Errorf("list %s: %w", c.kind, errors.Join(context.Cause(ctx), lastErr))
		case <-timer.C:
			return fmt.Errorf("list %s: no answer from the API server in %v: %w", c.kind, bound, errors.Join(context.DeadlineExceeded, lastErr))
		}
	}
}
