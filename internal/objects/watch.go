package objects

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// object is one watched object. It is a cache.ReflectorStore for its reflector.
type object struct {
	key      key
	onChange func(key)
	stop     context.CancelFunc

	mu      sync.Mutex
	value   metav1.Object // nil while it does not exist
	synced  chan struct{} // closed at the first answer
	lastErr error         // of list or watch, before the first answer
	frozen  bool          // immutable: the watch has ended
}

var _ cache.ReflectorStore = (*object)(nil)

func newObject(k key, onChange func(key)) *object {
	return &object{key: k, onChange: onChange, synced: make(chan struct{})}
}

// run watches until ctx ends or the object turns out to be immutable.
func (o *object) run(ctx context.Context, client kubernetes.Interface) {
	lw, expected := o.listWatch(client)
	r := cache.NewReflectorWithOptions(lw, expected, o, cache.ReflectorOptions{
		Name: o.key.kind + " " + o.key.namespace + "/" + o.key.name,
	})
	r.RunWithContext(ctx)
}

// listWatch lists and watches one object by name: all that a node's identity may do.
func (o *object) listWatch(client kubernetes.Interface) (cache.ListerWatcher, runtime.Object) {
	if o.key.kind == kindSecret {
		api := client.CoreV1().Secrets(o.key.namespace)
		return narrow(o, client, api.List, api.Watch), &corev1.Secret{}
	}
	api := client.CoreV1().ConfigMaps(o.key.namespace)
	return narrow(o, client, api.List, api.Watch), &corev1.ConfigMap{}
}

// narrow adds the field selector and remembers why there is no answer yet.
func narrow[L runtime.Object](o *object, client kubernetes.Interface,
	list func(context.Context, metav1.ListOptions) (L, error),
	start func(context.Context, metav1.ListOptions) (watch.Interface, error),
) cache.ListerWatcher {
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, o.key.name).String()
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			opts.FieldSelector = selector
			var l L
			err := authorized(ctx, func() (err error) { l, err = list(ctx, opts); return o.note(err) })
			return l, err
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			opts.FieldSelector = selector
			var w watch.Interface
			err := authorized(ctx, func() (err error) { w, err = start(ctx, opts); return o.note(err) })
			return w, err
		},
	}
	return cache.ToListWatcherWithWatchListSemantics(lw, client)
}

func (o *object) note(err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lastErr = err
	return err
}

// Add implements cache.ReflectorStore.
func (o *object) Add(obj any) error { return o.set(obj) }

// Update implements cache.ReflectorStore.
func (o *object) Update(obj any) error { return o.set(obj) }

// Delete implements cache.ReflectorStore.
func (o *object) Delete(any) error { return o.set(nil) }

// Resync implements cache.ReflectorStore.
func (o *object) Resync() error { return nil }

// Replace implements cache.ReflectorStore: the answer to a list.
func (o *object) Replace(list []any, _ string) error {
	for _, item := range list {
		if m, ok := item.(metav1.Object); ok && m.GetName() == o.key.name {
			return o.set(item)
		}
	}
	return o.set(nil)
}

// set takes a new state and tells about it if it is one.
func (o *object) set(obj any) error {
	var value metav1.Object
	if obj != nil {
		m, ok := obj.(metav1.Object)
		if !ok {
			return fmt.Errorf("watch %s %s/%s: got a %T", o.key.kind, o.key.namespace, o.key.name, obj)
		}
		value = m
	}
	if o.take(value) {
		o.onChange(o.key)
	}
	return nil
}

func (o *object) take(value metav1.Object) (changed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	first := o.markSynced()
	changed = first || !sameVersion(o.value, value)
	o.value = value
	if isImmutable(value) && !o.frozen {
		o.frozen = true
		o.stop()
	}
	return changed
}

func (o *object) markSynced() (first bool) {
	select {
	case <-o.synced:
		return false
	default:
		close(o.synced)
		return true
	}
}

func sameVersion(a, b metav1.Object) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return a.GetUID() == b.GetUID() && a.GetResourceVersion() == b.GetResourceVersion()
}

func isImmutable(m metav1.Object) bool {
	switch m := m.(type) {
	case *corev1.Secret:
		return m.Immutable != nil && *m.Immutable
	case *corev1.ConfigMap:
		return m.Immutable != nil && *m.Immutable
	}
	return false
}

// get waits for the first answer, at most for bound.
func (o *object) get(ctx context.Context, bound time.Duration) (metav1.Object, error) {
	timer := time.NewTimer(bound)
	defer timer.Stop()
	select {
	case <-o.synced:
	case <-ctx.Done():
		return nil, o.notYet(context.Cause(ctx))
	case <-timer.C:
		return nil, o.notYet(fmt.Errorf("no answer from the API server in %v", bound))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.value == nil {
		return nil, notFound(o.key)
	}
	return o.value, nil
}

func (o *object) notYet(err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return fmt.Errorf("read %s %s/%s: %w", o.key.kind, o.key.namespace, o.key.name, errors.Join(err, o.lastErr))
}

func notFound(k key) error {
	resource := "configmaps"
	if k.kind == kindSecret {
		resource = "secrets"
	}
	return apierrors.NewNotFound(schema.GroupResource{Resource: resource}, k.name)
}
