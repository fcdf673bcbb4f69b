package policy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// watcher follows pods, namespaces and policies of the whole cluster.
type watcher struct {
	to        *Controller
	informers []cache.SharedIndexInformer
	synced    []cache.InformerSynced
	told      sync.Once
}

// notFinished leaves pods out that have ended: the API server says that they are gone.
const notFinished = "status.phase!=Succeeded,status.phase!=Failed"

func newWatcher(client kubernetes.Interface, to *Controller) (*watcher, error) {
	w := &watcher{to: to}
	all := informers.NewSharedInformerFactory(client, 0)
	running := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = notFinished
	}))
	return w, errors.Join(
		w.add(all.Core().V1().Namespaces().Informer(), stripNamespace, w.namespace),
		w.add(running.Core().V1().Pods().Informer(), stripPod, w.pod),
		w.add(all.Networking().V1().NetworkPolicies().Informer(), stripPolicy, w.policy),
	)
}

// add registers changed, which gets the object before and after; nil is none.
func (w *watcher) add(i cache.SharedIndexInformer, strip cache.TransformFunc, changed func(old, obj any)) error {
	r, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { changed(nil, obj) },
		UpdateFunc: changed,
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			changed(obj, nil)
		},
	})
	err = errors.Join(err, i.SetTransform(strip), i.SetWatchErrorHandlerWithContext(w.failed))
	if err != nil {
		return fmt.Errorf("watch for network policies: %w", err)
	}
	w.informers, w.synced = append(w.informers, i), append(w.synced, r.HasSynced)
	return nil
}

func (w *watcher) run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, i := range w.informers {
		wg.Go(func() { i.RunWithContext(ctx) })
	}
	wg.Wait()
}

func (w *watcher) wait(ctx context.Context) bool {
	return cache.WaitForCacheSync(ctx.Done(), w.synced...)
}

// errForbidden is what an administrator has to do.
var errForbidden = errors.New("this node may not list pods, namespaces and networkpolicies: apply vk-metal's manifest (kubectl apply -f /usr/share/vk-metal/manifests/network-policy-rbac.yaml), or set networkPolicy: external")

func (w *watcher) failed(ctx context.Context, r *cache.Reflector, err error) {
	if !apierrors.IsForbidden(err) {
		cache.DefaultWatchErrorHandler(ctx, r, err)
		return
	}
	w.to.mu.Lock()
	w.to.reason = errForbidden
	w.to.mu.Unlock()
	w.told.Do(func() { w.to.log.Error("network policies cannot be enforced: no pod will start", "err", errForbidden) })
}

func (w *watcher) namespace(old, obj any) {
	if n, ok := obj.(*corev1.Namespace); ok {
		labels := n.Labels
		if labels == nil {
			labels = map[string]string{}
		}
		w.to.namespaceSeen(n.Name, labels)
	} else if n, ok := old.(*corev1.Namespace); ok {
		w.to.namespaceSeen(n.Name, nil)
	}
}

func (w *watcher) pod(old, obj any) {
	before, _ := old.(*corev1.Pod)
	after, _ := obj.(*corev1.Pod)
	if before != nil && (after == nil || after.UID != before.UID) {
		w.to.podSeen(string(before.UID), nil)
	}
	if after != nil {
		w.to.podSeen(string(after.UID), podOf(after))
	}
}

func (w *watcher) policy(old, obj any) {
	np, ok := obj.(*networkingv1.NetworkPolicy)
	if !ok {
		if np, ok = old.(*networkingv1.NetworkPolicy); ok {
			w.to.policySeen(np.Namespace+"/"+np.Name, nil)
		}
		return
	}
	p, err := compile(np)
	if err != nil {
		w.to.log.Warn("a network policy cannot be enforced as it is written", "err", err)
	}
	w.to.policySeen(np.Namespace+"/"+np.Name, p)
}

// podOf takes what policies ask from a pod.
func podOf(pod *corev1.Pod) *Pod {
	p := &Pod{
		UID: string(pod.UID), Namespace: pod.Namespace, Name: pod.Name, Node: pod.Spec.NodeName, Labels: pod.Labels,
		HostNetwork: pod.Spec.HostNetwork, Created: pod.CreationTimestamp.Unix(),
		Finished: pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed,
	}
	for _, ip := range pod.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			p.IPs = append(p.IPs, a.Unmap())
		}
	}
	for _, c := range pod.Spec.InitContainers {
		// One that does not run beside the others serves nobody.
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			p.name(c.Ports)
		}
	}
	for _, c := range pod.Spec.Containers {
		p.name(c.Ports)
	}
	return p
}

func (p *Pod) name(ports []corev1.ContainerPort) {
	for _, port := range ports {
		if proto, err := protocolOf(port.Protocol); err == nil && port.Name != "" {
			p.Ports = append(p.Ports, NamedPort{port.Name, proto, uint16(port.ContainerPort)})
		}
	}
}

// stripPod leaves what podOf reads: a pod is a tenth of its size then, and environment
// variables of others are not kept.
func stripPod(obj any) (any, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	out := &corev1.Pod{
		ObjectMeta: stripMeta(&pod.ObjectMeta),
		Spec:       corev1.PodSpec{NodeName: pod.Spec.NodeName, HostNetwork: pod.Spec.HostNetwork},
		Status:     corev1.PodStatus{Phase: pod.Status.Phase, PodIPs: pod.Status.PodIPs},
	}
	for _, c := range pod.Spec.Containers {
		out.Spec.Containers = append(out.Spec.Containers, corev1.Container{Ports: c.Ports})
	}
	for _, c := range pod.Spec.InitContainers {
		out.Spec.InitContainers = append(out.Spec.InitContainers, corev1.Container{Ports: c.Ports, RestartPolicy: c.RestartPolicy})
	}
	return out, nil
}

func stripMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion, Labels: m.Labels, CreationTimestamp: m.CreationTimestamp,
	}
}

func stripNamespace(obj any) (any, error) {
	if n, ok := obj.(*corev1.Namespace); ok {
		return &corev1.Namespace{ObjectMeta: stripMeta(&n.ObjectMeta)}, nil
	}
	return obj, nil
}

func stripPolicy(obj any) (any, error) {
	if p, ok := obj.(*networkingv1.NetworkPolicy); ok {
		return &networkingv1.NetworkPolicy{ObjectMeta: stripMeta(&p.ObjectMeta), Spec: p.Spec}, nil
	}
	return obj, nil
}
