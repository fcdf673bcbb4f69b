package objects

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Options of a Cache; the zero value is good.
type Options struct {
	// FirstAnswer bounds the waiting for a new watch; default 10 s.
	FirstAnswer time.Duration
	// Node is our own Node, nil while it is not known; without it there are no certificates for pods.
	Node func() *corev1.Node
	// Warn tells an event of a pod.
	Warn   func(pod *corev1.Pod, reason, message string)
	Logger *slog.Logger
}

// Cache is the node's Source. It is safe for concurrent use.
type Cache struct {
	ctx    context.Context //nolint:containedctx // the life of the watches
	client kubernetes.Interface
	opts   Options
	log    *slog.Logger
	wg     sync.WaitGroup

	mu       sync.Mutex
	pods     map[string]refs // by UID
	objects  map[key]*object
	many     map[string]*collection      // by kind
	users    map[key]map[string]struct{} // pod UIDs
	handlers []func(string)

	tokens       tokenCache
	certificates certificateCache
}

var _ Source = (*Cache)(nil)

// NewSource returns a Cache whose watches live until ctx ends; Wait waits for their end.
func NewSource(ctx context.Context, client kubernetes.Interface, opts Options) *Cache {
	if opts.FirstAnswer == 0 {
		opts.FirstAnswer = 10 * time.Second
	}
	if opts.Node == nil {
		opts.Node = func() *corev1.Node { return nil }
	}
	if opts.Warn == nil {
		opts.Warn = func(*corev1.Pod, string, string) {}
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	c := &Cache{
		ctx: ctx, client: client, opts: opts, log: opts.Logger,
		pods: map[string]refs{}, objects: map[key]*object{}, many: map[string]*collection{}, users: map[key]map[string]struct{}{},
	}
	c.tokens.init(c.tellPod)
	c.certificates.init(c.tellPod)
	context.AfterFunc(ctx, c.tokens.clear)
	context.AfterFunc(ctx, c.certificates.clear)
	return c
}

// Wait returns once every watch has ended, after the context given to NewSource.
func (c *Cache) Wait() { c.wg.Wait() }

// Register implements Source.
func (c *Cache) Register(pod *corev1.Pod) {
	wanted := podRefs(pod)
	uid := string(pod.UID)
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.pods[uid]
	c.pods[uid] = wanted
	for k := range wanted {
		if _, ok := old[k]; !ok {
			c.acquire(k, uid)
		}
	}
	for k := range old {
		if _, ok := wanted[k]; !ok {
			c.release(k, uid)
		}
	}
}

// Unregister implements Source.
func (c *Cache) Unregister(podUID string) {
	c.tokens.forget(podUID)
	c.certificates.forget(podUID)
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.pods[podUID] {
		c.release(k, podUID)
	}
	delete(c.pods, podUID)
}

// acquire starts the object's watch with its first user. The lock is held.
func (c *Cache) acquire(k key, uid string) {
	if c.users[k] == nil {
		c.users[k] = map[string]struct{}{}
	}
	c.users[k][uid] = struct{}{}
	if kind := collectedAs(k.kind); kind != "" {
		c.collect(kind)
		return
	}
	if c.objects[k] != nil || c.ctx.Err() != nil {
		return
	}
	o := newObject(k, c.tellUsers)
	ctx, stop := context.WithCancel(c.ctx)
	o.stop = stop
	c.objects[k] = o
	c.wg.Go(func() { o.run(ctx, c.client) })
}

// release ends the object's watch with its last user. The lock is held.
func (c *Cache) release(k key, uid string) {
	delete(c.users[k], uid)
	if len(c.users[k]) > 0 {
		return
	}
	delete(c.users, k)
	if kind := collectedAs(k.kind); kind != "" {
		c.uncollect(kind)
		return
	}
	if o := c.objects[k]; o != nil {
		o.stop()
		delete(c.objects, k)
	}
}

// collect starts the watch of all objects of a kind with the first that refers to any. The lock is
// held.
func (c *Cache) collect(kind string) {
	if c.many[kind] != nil || c.ctx.Err() != nil {
		return
	}
	open, changed := c.bundleAPI, c.bundleChanged
	if kind == kindRequest {
		open, changed = c.requestAPI, c.requestChanged
	}
	all := newCollection(kind, changed)
	ctx, stop := context.WithCancel(c.ctx)
	all.stop = stop
	c.many[kind] = all
	c.wg.Go(func() { all.run(ctx, c.client, open) })
}

// uncollect ends the watch of all objects of a kind if nobody refers to any. The lock is held.
func (c *Cache) uncollect(kind string) {
	for k := range c.users {
		if collectedAs(k.kind) == kind {
			return
		}
	}
	if all := c.many[kind]; all != nil {
		all.stop()
		delete(c.many, kind)
	}
}

// collected is nil if no registered pod refers to an object of the kind.
func (c *Cache) collected(kind string) *collection {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.many[kind]
}

// OnChange implements Source. Handlers must return quickly.
func (c *Cache) OnChange(handler func(podUID string)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handlers = append(c.handlers, handler)
}

func (c *Cache) tellUsers(k key) {
	c.mu.Lock()
	uids := slices.Sorted(maps.Keys(c.users[k]))
	c.mu.Unlock()
	for _, uid := range uids {
		c.tellPod(uid)
	}
}

// tellUsersOf tells each pod once that refers to any object that matches.
func (c *Cache) tellUsersOf(match func(key) bool) {
	uids := map[string]struct{}{}
	c.mu.Lock()
	for k, users := range c.users {
		if match(k) {
			maps.Copy(uids, users)
		}
	}
	c.mu.Unlock()
	for _, uid := range slices.Sorted(maps.Keys(uids)) {
		c.tellPod(uid)
	}
}

func (c *Cache) tellPod(uid string) {
	c.mu.Lock()
	handlers := slices.Clone(c.handlers)
	c.mu.Unlock()
	for _, handle := range handlers {
		handle(uid)
	}
}

// ConfigMap implements Source. The result is shared: do not change it.
func (c *Cache) ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	o := c.watched(key{kindConfigMap, namespace, name})
	if o == nil {
		return c.client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
	}
	m, err := o.get(ctx, c.opts.FirstAnswer)
	if err != nil {
		return nil, err
	}
	return m.(*corev1.ConfigMap), nil //nolint:forcetypeassert // the reflector checks the type
}

// Secret implements Source. The result is shared: do not change it.
func (c *Cache) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	o := c.watched(key{kindSecret, namespace, name})
	if o == nil {
		return c.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	}
	m, err := o.get(ctx, c.opts.FirstAnswer)
	if err != nil {
		return nil, err
	}
	return m.(*corev1.Secret), nil //nolint:forcetypeassert // the reflector checks the type
}

// watched returns the object if a registered pod refers to it; others are read once.
func (c *Cache) watched(k key) *object {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.objects[k]
}
