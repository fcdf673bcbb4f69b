package provider

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/internal/staticpods"
)

// A mirror pod shows a static pod in the API. It is the node's to make: whatever is done
// to it, the static pod runs on.

func isMirror(pod *corev1.Pod) bool {
	_, is := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return is
}

// mirrorChanged takes up that a mirror pod has come, changed or gone.
func (p *Provider) mirrorChanged() { p.static.kick() }

// syncMirrors makes the API's mirror pods those of the static pods.
func (p *Provider) syncMirrors(ctx context.Context) error {
	p.mu.Lock()
	synced := p.synced
	p.mu.Unlock()
	if !synced {
		return nil // firstLook kicks
	}
	var errs []error
	named := map[types.NamespacedName]bool{}
	for _, w := range p.all() {
		if !staticpods.IsUID(w.uid) {
			continue
		}
		pod, gone := w.current()
		named[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}] = true
		errs = append(errs, p.syncMirror(ctx, w, pod, gone))
	}
	list, err := p.pods.List(labels.Everything())
	errs = append(errs, err)
	for _, pod := range list {
		if isMirror(pod) && !named[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}] {
			errs = append(errs, p.deleteMirror(ctx, pod))
		}
	}
	return errors.Join(errs...)
}

// syncMirror gives one static pod its mirror; one that ends keeps the one that it has.
func (p *Provider) syncMirror(ctx context.Context, w *worker, pod *corev1.Pod, gone bool) error {
	mirror, err := p.pods.Pods(pod.Namespace).Get(pod.Name)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("look for the mirror of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	switch {
	case err != nil:
		w.setMirror(nil)
		if gone {
			return nil
		}
		return p.createMirror(ctx, pod)
	case !isMirror(mirror):
		w.setMirror(nil)
		w.event(pod, nil, corev1.EventTypeWarning, "MirrorPodConflict", "Another pod has this name in the API; the static pod runs and cannot be shown")
		return nil
	case mirror.Annotations[corev1.MirrorPodAnnotationKey] != string(pod.UID), mirror.DeletionTimestamp != nil:
		w.setMirror(nil)
		return p.deleteMirror(ctx, mirror)
	}
	w.setMirror(mirror)
	return nil
}

func (p *Provider) createMirror(ctx context.Context, pod *corev1.Pod) error {
	var node *corev1.Node
	if p.deps.Node.Self != nil {
		node = p.deps.Node.Self()
	}
	if node == nil {
		return fmt.Errorf("make a mirror of pod %s/%s: our own Node is not known yet", pod.Namespace, pod.Name)
	}
	mirror := &corev1.Pod{ObjectMeta: *pod.ObjectMeta.DeepCopy(), Spec: *pod.Spec.DeepCopy()}
	mirror.UID, mirror.ResourceVersion, mirror.Generation = "", "", 0
	mirror.Annotations[corev1.MirrorPodAnnotationKey] = string(pod.UID)
	mirror.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID, Controller: ptr.To(true),
	}}
	_, err := p.deps.Client.CoreV1().Pods(pod.Namespace).Create(ctx, mirror, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make a mirror of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

func (p *Provider) deleteMirror(ctx context.Context, mirror *corev1.Pod) error {
	options := metav1.NewDeleteOptions(0)
	options.Preconditions = metav1.NewUIDPreconditions(string(mirror.UID))
	err := p.deps.Client.CoreV1().Pods(mirror.Namespace).Delete(ctx, mirror.Name, *options)
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete mirror pod %s/%s: %w", mirror.Namespace, mirror.Name, err)
	}
	return nil
}

// setMirror says which object shows this static pod; nil for none.
func (w *worker) setMirror(mirror *corev1.Pod) {
	w.mu.Lock()
	before := w.mirror
	w.mirror = mirror
	w.mu.Unlock()
	if mirror != nil && (before == nil || before.UID != mirror.UID) {
		w.wakeUp() // it has no status yet
	}
}

// shownAs is the object whose status is this pod's: its own, or a static pod's mirror.
// Nil for a static pod that has none now.
func (w *worker) shownAs(pod *corev1.Pod) *corev1.Pod {
	if !staticpods.IsUID(w.uid) {
		return pod
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mirror
}

// keepStatus makes the computed status of a static pod the one that the next is made
// from: there may be no API server to keep it.
func (w *worker) keepStatus(status corev1.PodStatus) {
	if !staticpods.IsUID(w.uid) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	pod := *w.pod
	pod.Status = status
	w.pod = &pod
}
