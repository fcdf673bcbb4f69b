package provider

import (
	"context"
	"fmt"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
	"github.com/virtual-kubelet/virtual-kubelet/node"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	coreinformers "k8s.io/client-go/informers/core/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// runControllers runs the pod informer, virtual-kubelet's pod controller on it, and our
// own handler beside it.
func (p *Provider) runControllers(ctx context.Context) error {
	factory := informers.NewSharedInformerFactoryWithOptions(p.deps.Client, 0,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", p.deps.NodeName).String()
		}))
	pods := factory.Core().V1().Pods()
	p.mu.Lock()
	p.pods = pods.Lister()
	p.mu.Unlock()
	controller, err := p.newController(pods)
	if err != nil {
		return fmt.Errorf("make pod controller: %w", err)
	}
	registration, err := pods.Informer().AddEventHandler(p.handler())
	if err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.unitEvents(ctx) })
	group.Go(func() error { return p.runStatic(ctx) })
	group.Go(func() error { return p.limitStorage(ctx) })
	group.Go(func() error {
		if !cache.WaitForCacheSync(ctx.Done(), registration.HasSynced) {
			return nil
		}
		p.firstLook()
		return p.collect(ctx)
	})
	group.Go(func() error { return p.qosSlices(ctx) })
	group.Go(func() error {
		if err := controller.Run(ctx, 4); err != nil && ctx.Err() == nil {
			return fmt.Errorf("run pod controller: %w", err)
		}
		return nil
	})
	return group.Wait()
}

// firstLook marks that all pods of the start have their workers.
func (p *Provider) firstLook() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.synced = true
	p.static.kick()
	p.lookedAtLocked("")
}

// newController makes virtual-kubelet's pod controller. Its config map, secret and service
// informers are demanded but never started: a node must not list those, and nothing is
// resolved by it.
func (p *Provider) newController(pods coreinformers.PodInformer) (*node.PodController, error) {
	idle := informers.NewSharedInformerFactory(p.deps.Client, 0).Core().V1()
	limiter := func() workqueue.TypedRateLimiter[any] {
		return workqueue.NewTypedItemExponentialFailureRateLimiter[any](5*time.Millisecond, time.Minute)
	}
	return node.NewPodController(node.PodControllerConfig{
		PodClient:   podsClient{p.deps.Client.CoreV1(), p},
		PodInformer: pods, ConfigMapInformer: idle.ConfigMaps(), SecretInformer: idle.Secrets(), ServiceInformer: idle.Services(),
		EventRecorder: quietRecorder{p.deps.Recorder}, Provider: lifecycle{p},
		SyncPodsFromKubernetesRateLimiter: limiter(), DeletePodsFromKubernetesRateLimiter: limiter(), SyncPodStatusFromProviderRateLimiter: limiter(),
		SkipDownwardAPIResolution: true,
	})
}

// handler is our own view of the pods: by UID, with tombstones, and every field.
func (p *Provider) handler() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			if pod, ok := obj.(*corev1.Pod); ok {
				p.seen(pod)
			}
		},
		UpdateFunc: func(old, obj any) {
			before, okOld := old.(*corev1.Pod)
			pod, ok := obj.(*corev1.Pod)
			if okOld && ok && before.UID != pod.UID {
				p.vanished(before) // deleted and made anew between two events
			}
			if ok {
				p.seen(pod)
			}
		},
		DeleteFunc: func(obj any) {
			if tomb, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = tomb.Obj
			}
			if pod, ok := obj.(*corev1.Pod); ok {
				p.vanished(pod)
			}
		},
	}
}

// vanished takes up that a pod's object does not exist any more.
func (p *Provider) vanished(pod *corev1.Pod) {
	if isMirror(pod) {
		p.mirrorChanged()
		return
	}
	if w := p.byUID(pod.UID); w != nil {
		w.setGone(pod)
	}
}

// recheck asks the API server whether a pod's object still exists, after an answer that
// says otherwise.
func (p *Provider) recheck(pod *corev1.Pod) {
	gone, err := p.confirmGone(p.ctx, pod)
	if err != nil {
		p.log.Warn("Cannot ask for a pod", "pod", pod.Namespace+"/"+pod.Name, "err", err)
		return
	}
	if gone {
		p.vanished(pod)
	}
}

// confirmGone asks the API server itself, not a cache. It lists: a node may not get a pod
// that does not exist (Node authorizer, AuthorizeNodeWithSelectors).
func (p *Provider) confirmGone(ctx context.Context, pod *corev1.Pod) (bool, error) {
	list, err := p.deps.Client.CoreV1().Pods(pod.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.AndSelectors(
			fields.OneTermEqualSelector("spec.nodeName", p.deps.NodeName), fields.OneTermEqualSelector("metadata.name", pod.Name),
		).String(),
	})
	if err != nil {
		return false, fmt.Errorf("look for pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	for _, now := range list.Items {
		if now.UID == pod.UID {
			return false, nil
		}
	}
	return true, nil
}

// lifecycle is what virtual-kubelet calls. It only passes on that a pod has changed: the
// workers look for themselves, for ever, and never answer with an error.
type lifecycle struct{ p *Provider }

func (l lifecycle) CreatePod(_ context.Context, pod *corev1.Pod) error {
	l.p.seen(pod)
	return nil
}

func (l lifecycle) UpdatePod(_ context.Context, pod *corev1.Pod) error {
	l.p.seen(pod)
	return nil
}

func (l lifecycle) DeletePod(_ context.Context, pod *corev1.Pod) error {
	if w := l.p.byUID(pod.UID); w != nil {
		w.wakeUp()
	}
	return nil
}

// GetPod returns the pod only if it is the one that the API has under this name now: a new
// pod of an old name must get its CreatePod.
func (l lifecycle) GetPod(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	pod, err := l.p.pods.Pods(namespace).Get(name)
	if err != nil {
		return nil, errdefs.NotFound("pod is not known")
	}
	if l.p.byUID(pod.UID) == nil {
		return nil, errdefs.NotFound("pod is not known by this UID")
	}
	return pod, nil
}

func (l lifecycle) GetPodStatus(_ context.Context, namespace, name string) (*corev1.PodStatus, error) {
	pod, ok := l.p.Pod(namespace, name)
	if !ok {
		return nil, errdefs.NotFound("pod is not known")
	}
	return &pod.Status, nil
}

// GetPods returns nothing: virtual-kubelet would delete what the API does not have, by
// name and without a guard. See collect.
func (l lifecycle) GetPods(context.Context) ([]*corev1.Pod, error) { return nil, nil }

// NotifyPods makes us an asynchronous provider. The callback is not used: statuses are
// patched by the workers.
func (l lifecycle) NotifyPods(context.Context, func(*corev1.Pod)) {}

// podsClient is the client given to virtual-kubelet: it can neither delete a pod before
// its end nor overwrite a status.
type podsClient struct {
	typedcorev1.PodsGetter
	p *Provider
}

func (c podsClient) Pods(namespace string) typedcorev1.PodInterface {
	return guardedPods{c.PodsGetter.Pods(namespace), c.p, namespace}
}

type guardedPods struct {
	typedcorev1.PodInterface
	p         *Provider
	namespace string
}

// Delete only wakes the worker: it deletes the object once the pod is torn down.
func (g guardedPods) Delete(_ context.Context, name string, _ metav1.DeleteOptions) error {
	if pod, err := g.p.pods.Pods(g.namespace).Get(name); err == nil {
		if w := g.p.byUID(pod.UID); w != nil {
			w.wakeUp()
		}
	}
	return nil
}

// UpdateStatus patches the difference, keeping what others wrote.
func (g guardedPods) UpdateStatus(ctx context.Context, pod *corev1.Pod, _ metav1.UpdateOptions) (*corev1.Pod, error) {
	now, err := g.p.pods.Pods(g.namespace).Get(pod.Name)
	if err != nil || now.UID != pod.UID {
		return pod, nil //nolint:nilerr // gone or replaced: there is nothing to update
	}
	answer, err := patchStatus(ctx, g.p.deps.Client, now, pod.Status)
	if err != nil || answer == nil {
		return pod, err
	}
	return answer, nil
}
