package endpoints

import (
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
)

// Endpoint is a pod in one EndpointSlice.
type Endpoint struct {
	Slice       string // its name
	Ready       bool
	Terminating bool
	// Published says that the Service publishes addresses that are not ready.
	Published bool
}

// State is how far the slices can be known.
type State int

// What a Source can say of a pod.
const (
	Unknown   State = iota // not read yet
	Known                  // what it says is all there is
	Forbidden              // the cluster does not let this node see slices
)

// Source tells what EndpointSlices say of pods. Its functions may be called at any time.
type Source interface {
	// Of returns the pod's endpoints, in no order.
	Of(uid types.UID) ([]Endpoint, State)
	// OnChange sets who is told of pods whose endpoints have changed; before Run.
	OnChange(func(uid types.UID))
	// Track takes up a pod of this node, or its new labels; Forget drops it. Both are idempotent.
	Track(pod *corev1.Pod)
	Forget(uid types.UID)
}

// byPod indexes slices by the UIDs of their target pods.
const byPod = "pod"

// Shared reads the slices of an informer that somebody else runs for all Services.
type Shared struct {
	changes
	indexer   cache.Indexer
	services  corelisters.ServiceLister
	synced    cache.InformerSynced
	forbidden func() bool
}

var _ Source = (*Shared)(nil)

// NewShared registers with an informer, which must not have been started. forbidden says
// whether its watch is.
func NewShared(node string, sliceInformer cache.SharedIndexInformer, services corelisters.ServiceLister, forbidden func() bool) (*Shared, error) {
	s := &Shared{indexer: sliceInformer.GetIndexer(), services: services, forbidden: forbidden}
	registration, err := s.register(node, sliceInformer)
	if err != nil {
		return nil, err
	}
	s.synced = registration.HasSynced
	return s, nil
}

// Of implements Source.
func (s *Shared) Of(uid types.UID) ([]Endpoint, State) {
	switch {
	case s.synced():
		return lookUp(s.indexer, s.services, uid, ""), Known
	case s.forbidden():
		return nil, Forbidden
	}
	return nil, Unknown
}

// Track implements Source; there is nothing to do.
func (s *Shared) Track(*corev1.Pod) {}

// Forget implements Source; there is nothing to do.
func (s *Shared) Forget(types.UID) {}

// changes passes on which pods' endpoints have changed.
type changes struct {
	mu   sync.Mutex
	tell func(types.UID)
}

// OnChange implements Source.
func (c *changes) OnChange(fn func(types.UID)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tell = fn
}

func (c *changes) changed(objs ...any) {
	c.mu.Lock()
	tell := c.tell
	c.mu.Unlock()
	if tell == nil {
		return
	}
	told := map[types.UID]bool{}
	for _, obj := range objs {
		for _, uid := range targets(obj, "") {
			if !told[types.UID(uid)] {
				told[types.UID(uid)] = true
				tell(types.UID(uid))
			}
		}
	}
}

// register adds the index and the handler to an informer.
func (c *changes) register(node string, informer cache.SharedIndexInformer) (cache.ResourceEventHandlerRegistration, error) {
	err := informer.AddIndexers(cache.Indexers{byPod: func(obj any) ([]string, error) { return targets(obj, node), nil }})
	if err != nil {
		return nil, err
	}
	return informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { c.changed(obj) },
		UpdateFunc: func(old, obj any) { c.changed(old, obj) },
		DeleteFunc: func(obj any) { c.changed(obj) },
	})
}

// targets are the UIDs of the pods that a slice names; with node, of those that are not
// known to be on another one.
func targets(obj any, node string) []string {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	slice, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok {
		return nil
	}
	var uids []string
	for i := range slice.Endpoints {
		e := &slice.Endpoints[i]
		elsewhere := node != "" && e.NodeName != nil && *e.NodeName != node
		if uid := target(e); uid != "" && !elsewhere && !slices.Contains(uids, string(uid)) {
			uids = append(uids, string(uid))
		}
	}
	return uids
}

// target is the UID of the endpoint's pod, "" for none.
func target(e *discoveryv1.Endpoint) types.UID {
	if e.TargetRef == nil || e.TargetRef.Kind != "Pod" {
		return ""
	}
	return e.TargetRef.UID
}

// lookUp collects what an indexer's slices, of one Service only if it is named, say of a pod.
func lookUp(indexer cache.Indexer, services corelisters.ServiceLister, uid types.UID, service string) []Endpoint {
	objs, err := indexer.ByIndex(byPod, string(uid))
	if err != nil {
		return nil // the index is there from the beginning
	}
	var list []Endpoint
	for _, obj := range objs {
		slice := obj.(*discoveryv1.EndpointSlice)
		if service != "" && slice.Labels[discoveryv1.LabelServiceName] != service {
			continue
		}
		published := publishes(services, slice)
		for i := range slice.Endpoints {
			if target(&slice.Endpoints[i]) == uid {
				list = append(list, endpoint(slice.Name, published, slice.Endpoints[i].Conditions))
			}
		}
	}
	return list
}

// endpoint reads conditions: without a value one is ready, and does not end.
func endpoint(slice string, published bool, c discoveryv1.EndpointConditions) Endpoint {
	return Endpoint{
		Slice: slice, Published: published,
		Ready: c.Ready == nil || *c.Ready, Terminating: c.Terminating != nil && *c.Terminating,
	}
}

func publishes(services corelisters.ServiceLister, slice *discoveryv1.EndpointSlice) bool {
	service, err := services.Services(slice.Namespace).Get(slice.Labels[discoveryv1.LabelServiceName])
	return err == nil && service.Spec.PublishNotReadyAddresses
}
