package node

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// Peer is another node: where it is and which podCIDRs lie behind it.
type Peer struct {
	Name     string
	Addrs    []netip.Addr
	PodCIDRs []netip.Prefix
	// Ready is what the API server has of it.
	Ready bool
	// Labels are all, Annotations vk-metal's own.
	Labels, Annotations map[string]string
}

// annotationDomain is what vk-metal's annotations of Nodes end with before the slash.
const annotationDomain = "vk-metal.io"

// ownAnnotations are those of vk-metal, nil if there is none.
func ownAnnotations(all map[string]string) map[string]string {
	var own map[string]string
	for key, value := range all {
		if domain, _, ok := strings.Cut(key, "/"); ok && strings.HasSuffix(domain, annotationDomain) {
			if own == nil {
				own = map[string]string{}
			}
			own[key] = value
		}
	}
	return own
}

// ErrPeersForbidden says that this identity may not list nodes, which a node's may not
// without the ClusterRole that vk-metal ships.
var ErrPeersForbidden = errors.New("the cluster does not let this node list the other nodes, so there are no routes to their pods: apply vk-metal's node RBAC manifest (kubectl apply -f /usr/share/vk-metal/manifests/node-rbac.yaml)")

// WatchOptions say who wants to know what. The functions are called one at a time.
type WatchOptions struct {
	Client kubernetes.Interface
	Name   string
	// Self gets our own Node after each change of its metadata, spec or readiness; nil when
	// it was deleted.
	Self func(*corev1.Node)
	// Attached is called when the volumes that are attached to our Node have changed; may be nil.
	Attached func()
	// Peers gets all other Nodes, by name, after a change of what Peer holds.
	Peers func([]Peer)
	// PeersError gets why the others cannot be seen, and nil once they can.
	PeersError func(error)
	Log        *slog.Logger
}

// Watcher follows our own Node and the others'. It is a task.Task.
type Watcher struct {
	o     WatchOptions
	ready chan struct{}

	mu     sync.Mutex
	peers  map[string]Peer // that are known, by name
	all    bool            // these are all
	broken error
}

// NewWatcher makes a Watcher; it watches in Run.
func NewWatcher(o WatchOptions) *Watcher {
	return &Watcher{o: o, ready: make(chan struct{}), peers: map[string]Peer{}}
}

// String implements task.Task.
func (w *Watcher) String() string { return "node-watcher" }

// Ready is closed at once: what is not known yet shows in the node's conditions.
func (w *Watcher) Ready() <-chan struct{} { return w.ready }

// Run implements task.Task.
func (w *Watcher) Run(ctx context.Context) error {
	close(w.ready)
	self, _, err := w.informer("metadata.name="+w.o.Name, nil, cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { w.self(nil, obj) },
		UpdateFunc: w.self,
		DeleteFunc: func(any) { w.call(func() { w.o.Self(nil) }) },
	})
	if err != nil {
		return err
	}
	peers, synced, err := w.informer("", w.peersFailed, cache.ResourceEventHandlerFuncs{
		AddFunc:    w.peerSeen,
		UpdateFunc: func(_, obj any) { w.peerSeen(obj) },
		DeleteFunc: w.peerGone,
	})
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	running.Go(func() { self.RunWithContext(ctx) })
	running.Go(func() { peers.RunWithContext(ctx) })
	running.Go(func() {
		if cache.WaitForCacheSync(ctx.Done(), synced) {
			w.listed()
		}
	})
	running.Wait()
	return nil
}

// informer also returns when the handler has got all that was listed first.
func (w *Watcher) informer(selector string, failed func(error), handler cache.ResourceEventHandler) (cache.SharedIndexInformer, cache.InformerSynced, error) {
	factory := informers.NewSharedInformerFactoryWithOptions(w.o.Client, 0,
		informers.WithTransform(trim),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			if selector != "" {
				o.FieldSelector = fields.ParseSelectorOrDie(selector).String()
			}
		}))
	informer := factory.Core().V1().Nodes().Informer()
	if failed != nil {
		err := informer.SetWatchErrorHandler(func(r *cache.Reflector, err error) {
			failed(err)
			if !apierrors.IsForbidden(err) {
				cache.DefaultWatchErrorHandler(context.Background(), r, err)
			}
		})
		if err != nil {
			return nil, nil, err
		}
	}
	registration, err := informer.AddEventHandler(handler)
	if err != nil {
		return nil, nil, err
	}
	return informer, registration.HasSynced, nil
}

// trim drops what nobody here looks at: a large cluster's Nodes are big.
func trim(obj any) (any, error) {
	if node, ok := obj.(*corev1.Node); ok {
		node.ManagedFields = nil
		node.Annotations = ownAnnotations(node.Annotations)
		ready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionFalse}
		if IsReady(node) {
			ready.Status = corev1.ConditionTrue
		}
		conditions := []corev1.NodeCondition{ready}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeNetworkUnavailable {
				conditions = append(conditions, corev1.NodeCondition{Type: c.Type, Status: c.Status, Reason: c.Reason})
			}
		}
		node.Status = corev1.NodeStatus{Addresses: node.Status.Addresses, Conditions: conditions, VolumesAttached: node.Status.VolumesAttached}
	}
	return obj, nil
}

// IsReady says whether a Node's condition Ready is True.
func IsReady(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

func (w *Watcher) call(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// self passes our Node on unless only its status moved, readiness aside.
func (w *Watcher) self(before, after any) {
	now, ok := after.(*corev1.Node)
	if !ok {
		return
	}
	if old, ok := before.(*corev1.Node); ok && w.o.Attached != nil && !reflect.DeepEqual(old.Status.VolumesAttached, now.Status.VolumesAttached) {
		w.call(w.o.Attached)
	}
	if old, ok := before.(*corev1.Node); ok && old.UID == now.UID && reflect.DeepEqual(old.Spec, now.Spec) &&
		reflect.DeepEqual(old.Labels, now.Labels) && reflect.DeepEqual(old.Annotations, now.Annotations) &&
		old.DeletionTimestamp.Equal(now.DeletionTimestamp) && IsReady(old) == IsReady(now) {
		return
	}
	w.call(func() { w.o.Self(now) })
}

// peerSeen takes a Node as it is now. Most of what happens to Nodes changes no Peer.
func (w *Watcher) peerSeen(obj any) {
	node, ok := obj.(*corev1.Node)
	if !ok || node.Name == w.o.Name {
		return
	}
	peer, err := toPeer(node)
	if err != nil {
		w.o.Log.Warn("cannot use another Node", "node", node.Name, "err", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	before, was := w.peers[node.Name]
	if delete(w.peers, node.Name); err == nil {
		w.peers[node.Name] = peer
	}
	w.tell(was != (err == nil) || was && !reflect.DeepEqual(before, peer))
}

func (w *Watcher) peerGone(obj any) {
	name, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj)
	if err != nil {
		return // not an object of the API
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_, was := w.peers[name]
	delete(w.peers, name)
	w.tell(was)
}

// listed says that all Nodes have been seen. Nobody is told of peers before: routes to those
// that are missing would be taken away.
func (w *Watcher) listed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = true
	w.tell(true)
}

// tell tells the peers if they have changed, and that they can be seen. The lock is held.
func (w *Watcher) tell(changed bool) {
	if !w.all {
		return
	}
	if w.broken != nil {
		w.broken = nil
		w.o.PeersError(nil)
	}
	if changed {
		w.o.Peers(slices.SortedFunc(maps.Values(w.peers), func(a, b Peer) int { return strings.Compare(a.Name, b.Name) }))
	}
}

func (w *Watcher) peersFailed(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !apierrors.IsForbidden(err) || errors.Is(w.broken, ErrPeersForbidden) {
		return
	}
	w.broken = ErrPeersForbidden
	w.o.PeersError(ErrPeersForbidden)
}

func toPeer(node *corev1.Node) (Peer, error) {
	cidrs, err := ParsePodCIDRs(node.Spec.PodCIDRs)
	if err != nil {
		return Peer{}, err
	}
	peer := Peer{Name: node.Name, PodCIDRs: cidrs, Ready: IsReady(node), Labels: node.Labels, Annotations: node.Annotations}
	for _, address := range node.Status.Addresses {
		if address.Type != corev1.NodeInternalIP {
			continue
		}
		addr, err := netip.ParseAddr(address.Address)
		if err != nil {
			return Peer{}, err
		}
		peer.Addrs = append(peer.Addrs, addr.Unmap())
	}
	return peer, nil
}
