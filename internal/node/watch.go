package node

import (
	"context"
	"errors"
	"log/slog"
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

	mu       sync.Mutex
	reported []Peer
	told     bool
	broken   error
}

// NewWatcher makes a Watcher; it watches in Run.
func NewWatcher(o WatchOptions) *Watcher { return &Watcher{o: o, ready: make(chan struct{})} }

// String implements task.Task.
func (w *Watcher) String() string { return "node-watcher" }

// Ready is closed at once: what is not known yet shows in the node's conditions.
func (w *Watcher) Ready() <-chan struct{} { return w.ready }

// Run implements task.Task.
func (w *Watcher) Run(ctx context.Context) error {
	close(w.ready)
	self, err := w.informer("metadata.name="+w.o.Name, nil, cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { w.self(nil, obj) },
		UpdateFunc: w.self,
		DeleteFunc: func(any) { w.call(func() { w.o.Self(nil) }) },
	})
	if err != nil {
		return err
	}
	var peers cache.SharedIndexInformer
	changed := func() { w.peersChanged(peers.GetStore()) }
	peers, err = w.informer("", w.peersFailed, cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { changed() },
		UpdateFunc: func(any, any) { changed() },
		DeleteFunc: func(any) { changed() },
	})
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	running.Go(func() { self.RunWithContext(ctx) })
	running.Go(func() { peers.RunWithContext(ctx) })
	running.Go(func() {
		if cache.WaitForCacheSync(ctx.Done(), peers.HasSynced) {
			changed()
		}
	})
	running.Wait()
	return nil
}

func (w *Watcher) informer(selector string, failed func(error), handler cache.ResourceEventHandler) (cache.SharedIndexInformer, error) {
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
			return nil, err
		}
	}
	_, err := informer.AddEventHandler(handler)
	return informer, err
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
		node.Status = corev1.NodeStatus{Addresses: node.Status.Addresses, Conditions: []corev1.NodeCondition{ready}, VolumesAttached: node.Status.VolumesAttached}
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

// peersChanged tells the peers if they differ from those told before.
func (w *Watcher) peersChanged(store cache.Store) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken != nil {
		w.broken = nil
		w.o.PeersError(nil)
	}
	peers := w.peers(store.List())
	if w.told && reflect.DeepEqual(peers, w.reported) {
		return
	}
	w.told, w.reported = true, peers
	w.o.Peers(slices.Clone(peers))
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

func (w *Watcher) peers(objects []any) []Peer {
	var peers []Peer
	for _, obj := range objects {
		node, ok := obj.(*corev1.Node)
		if !ok || node.Name == w.o.Name {
			continue
		}
		peer, err := toPeer(node)
		if err != nil {
			w.o.Log.Warn("cannot use another Node", "node", node.Name, "err", err)
			continue
		}
		peers = append(peers, peer)
	}
	slices.SortFunc(peers, func(a, b Peer) int { return strings.Compare(a.Name, b.Name) })
	return peers
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
