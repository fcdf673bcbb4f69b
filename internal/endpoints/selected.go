package endpoints

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// Selected watches the slices of those Services that select a pod of this node, one watch
// for each. Slices that name pods of no Service's selection are not seen.
type Selected struct {
	changes
	node     string
	client   kubernetes.Interface
	services coreinformers.ServiceInformer
	synced   cache.InformerSynced
	log      *slog.Logger

	mu      sync.Mutex
	pods    map[types.UID]*tracked
	watches map[string]*serviceWatch // by namespace/name of the Service
	ctx     context.Context          // of Run; nil before
	group   sync.WaitGroup
	barred  bool
}

var _ Source = (*Selected)(nil)

type tracked struct {
	namespace string
	labels    map[string]string
	services  map[string]bool
}

type serviceWatch struct {
	name     string
	informer cache.SharedIndexInformer
	synced   cache.InformerSynced
	users    int
	stop     context.CancelFunc // nil while it does not run
}

// NewSelected registers with the informer of Services, which must not have been started.
func NewSelected(node string, client kubernetes.Interface, services coreinformers.ServiceInformer, log *slog.Logger) (*Selected, error) {
	s := &Selected{node: node, client: client, services: services, log: log, pods: map[types.UID]*tracked{}, watches: map[string]*serviceWatch{}}
	registration, err := services.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { s.serviceChanged(obj, false) },
		UpdateFunc: func(old, obj any) {
			before, okOld := old.(*corev1.Service)
			now, ok := obj.(*corev1.Service)
			if okOld && ok && !maps.Equal(before.Spec.Selector, now.Spec.Selector) {
				s.serviceChanged(obj, false)
			}
		},
		DeleteFunc: func(obj any) { s.serviceChanged(obj, true) },
	})
	if err != nil {
		return nil, err
	}
	s.synced = registration.HasSynced
	return s, nil
}

// Run watches until ctx ends.
func (s *Selected) Run(ctx context.Context) error {
	s.mu.Lock()
	s.ctx = ctx
	for _, w := range s.watches {
		s.start(w)
	}
	s.mu.Unlock()
	<-ctx.Done()
	s.group.Wait()
	return nil
}

// Of implements Source.
func (s *Selected) Of(uid types.UID) ([]Endpoint, State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pod := s.pods[uid]
	if s.barred {
		return nil, Forbidden
	}
	if pod == nil || !s.synced() {
		return nil, Unknown
	}
	var list []Endpoint
	for key := range pod.services {
		w := s.watches[key]
		if !w.synced() {
			return nil, Unknown
		}
		list = append(list, lookUp(w.informer.GetIndexer(), s.services.Lister(), uid, w.name)...)
	}
	return list, Known
}

// Track implements Source.
func (s *Selected) Track(pod *corev1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.pods[pod.UID]
	if old != nil && maps.Equal(old.labels, pod.Labels) {
		return
	}
	now := &tracked{namespace: pod.Namespace, labels: maps.Clone(pod.Labels), services: map[string]bool{}}
	s.pods[pod.UID] = now
	list, err := s.services.Lister().Services(pod.Namespace).List(labels.Everything())
	if err != nil {
		return // a lister of a cache has none
	}
	for _, service := range list {
		if selects(service, now) {
			s.use(now, service.Namespace+"/"+service.Name)
		}
	}
	s.drop(old)
}

// Forget implements Source.
func (s *Selected) Forget(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(s.pods[uid])
	delete(s.pods, uid)
}

// serviceChanged compares one Service with all pods.
func (s *Selected) serviceChanged(obj any, gone bool) {
	if tomb, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tomb.Obj
	}
	service, ok := obj.(*corev1.Service)
	if !ok {
		return
	}
	key := service.Namespace + "/" + service.Name
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, pod := range s.pods {
		switch selected := !gone && selects(service, pod); {
		case selected && !pod.services[key]:
			s.use(pod, key)
		case !selected && pod.services[key]:
			s.leave(pod, key)
		}
	}
}

// selects says whether the Service has a selector, and it selects the pod.
func selects(service *corev1.Service, pod *tracked) bool {
	return service.Namespace == pod.namespace && len(service.Spec.Selector) > 0 &&
		labels.SelectorFromValidatedSet(service.Spec.Selector).Matches(labels.Set(pod.labels))
}

// use, leave and drop count the users of a Service's watch. The lock is held.
func (s *Selected) use(pod *tracked, key string) {
	pod.services[key] = true
	w := s.watches[key]
	if w == nil {
		var err error
		if w, err = s.newWatch(key); err != nil {
			s.log.Error("Cannot watch the endpoints of a Service", "service", key, "err", err)
			delete(pod.services, key)
			return
		}
		s.watches[key] = w
		s.start(w)
	}
	w.users++
}

func (s *Selected) leave(pod *tracked, key string) {
	delete(pod.services, key)
	w := s.watches[key]
	if w.users--; w.users > 0 {
		return
	}
	delete(s.watches, key)
	if w.stop != nil {
		w.stop()
	}
}

func (s *Selected) drop(pod *tracked) {
	if pod == nil {
		return
	}
	for key := range pod.services {
		s.leave(pod, key)
	}
}

// start runs a watch once there is a context. The lock is held.
func (s *Selected) start(w *serviceWatch) {
	if s.ctx == nil || w.stop != nil {
		return
	}
	ctx, stop := context.WithCancel(s.ctx)
	w.stop = stop
	s.group.Go(func() { w.informer.RunWithContext(ctx) })
}

func (s *Selected) newWatch(key string) (*serviceWatch, error) {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return nil, err
	}
	api := s.client.DiscoveryV1().EndpointSlices(namespace)
	only := labels.Set{discoveryv1.LabelServiceName: name}.String()
	source := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector = only
			return api.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = only
			return api.Watch(ctx, o)
		},
	}, s.client)
	informer := cache.NewSharedIndexInformer(source, &discoveryv1.EndpointSlice{}, time.Duration(0), cache.Indexers{})
	if err := informer.SetWatchErrorHandlerWithContext(s.watchFailed); err != nil {
		return nil, err
	}
	registration, err := s.register(s.node, informer)
	if err != nil {
		return nil, err
	}
	return &serviceWatch{name: name, informer: informer, synced: registration.HasSynced}, nil
}

// watchFailed tells once that slices may not be seen.
func (s *Selected) watchFailed(ctx context.Context, r *cache.Reflector, err error) {
	if !apierrors.IsForbidden(err) {
		cache.DefaultWatchErrorHandler(ctx, r, err)
		return
	}
	s.mu.Lock()
	told := s.barred
	s.barred = true
	s.mu.Unlock()
	if !told {
		s.log.Warn("Pods end without waiting for their clients: this node may not see endpoint slices; apply node-rbac.yaml", "err", err)
	}
}
