package provider

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

// end releases what a pod holds once its processes are dead, deletes its object once that
// is asked for and its final status is there, and removes its traces once it is gone. It
// says whether nothing is left. Like a kubelet's, the object of a pod with volumes that others
// lend stays until they have them back: who waits for it may then attach them elsewhere.
func (w *worker) end(pod *corev1.Pod, gone bool, d podplan.Decision, reported bool) bool {
	if d.Ending {
		w.cancelOps(func(key string) bool {
			return strings.HasPrefix(key, "image/") || strings.HasPrefix(key, envOps) || key == opNetwork || key == opVolumes || key == opSandbox || key == opClaims
		})
	}
	if !d.Done || w.preparing() {
		return false
	}
	deletable := pod.DeletionTimestamp != nil && !gone && reported
	lent := podplan.LentVolumes(pod)
	if deletable && !lent {
		w.deleteObject(pod) // what is released is this node's own: nobody waits for it
	}
	release := w.begin(opRelease, time.Second, func(ctx context.Context) (any, error) {
		return nil, w.step("release", func() error { return w.p.release(ctx, pod) })
	})
	if release.err != nil {
		w.log.Warn("Cannot release what a pod holds", "err", release.err)
		w.volumeEvents(pod, release.err)
	}
	if !release.done {
		return false
	}
	if !w.released {
		w.released = true
		closeOnce(w.freed)
		w.wakeUp() // the status says so
	}
	if deletable && lent {
		w.deleteObject(pod)
	}
	if !gone {
		return false
	}
	remove := w.begin("remove", time.Second, func(context.Context) (any, error) {
		return nil, w.step("remove", func() error { return w.p.removeTraces(pod) })
	})
	if remove.err != nil {
		w.log.Warn("Cannot remove the traces of a pod", "err", remove.err)
	}
	return remove.done
}

// preparing says whether an operation that makes something is still going: what it makes
// has to be there before it can be removed.
func (w *worker) preparing() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, o := range w.ops {
		if o.running && key != opStatus && key != opDelete && key != opRelease && key != "remove" {
			return true
		}
	}
	return false
}

// deleteObject deletes the API object with grace 0, this UID only. An object that stays
// (finalizers) is asked for again now and then.
func (w *worker) deleteObject(pod *corev1.Pod) {
	o := w.begin(opDelete, apiRetry, func(ctx context.Context) (any, error) {
		w.p.hook("delete/before")
		defer w.p.hook("delete/after")
		options := metav1.NewDeleteOptions(0)
		options.Preconditions = metav1.NewUIDPreconditions(string(pod.UID))
		err := w.p.deps.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, *options)
		switch {
		case apierrors.IsNotFound(err), apierrors.IsConflict(err):
			w.p.recheck(pod)
			return nil, nil
		case err != nil:
			w.log.Warn("Cannot delete the object of an ended pod", "err", err)
			return nil, err
		}
		w.log.Info("Pod ended and deleted")
		return nil, nil
	})
	if o.done && pod.DeletionGracePeriodSeconds != nil && *pod.DeletionGracePeriodSeconds != 0 {
		// Deleted, and the watch has not said so: ask, in case its event was lost.
		w.wakeAfter(10 * time.Second)
	}
}

// release gives back network, namespaces, volumes and the slice; it is idempotent and safe
// for a pod that never had any of them. It runs in the reverse order of the set-up.
func (p *Provider) release(ctx context.Context, pod *corev1.Pod) error {
	uid := string(pod.UID)
	p.deps.Probes.Stop(uid, "")
	var errs []error
	for _, slice := range podplan.SliceNames(uid) {
		if err := p.deps.Runtime.RemoveSlice(ctx, slice); err != nil {
			errs = append(errs, fmt.Errorf("remove slice: %w", err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...) // processes may live: nothing is taken from under them
	}
	p.hook("release.slice/after")
	if err := p.deps.Network.Teardown(ctx, uid); err != nil {
		errs = append(errs, fmt.Errorf("tear down network: %w", err))
	} else if p.deps.Policy != nil {
		p.deps.Policy.Release(uid)
	}
	p.hook("release.network/after")
	if p.deps.SELinux != nil {
		errs = append(errs, p.deps.SELinux.Release(uid))
	}
	if err := p.deps.Sandbox.Remove(ctx, uid); err != nil {
		errs = append(errs, fmt.Errorf("remove namespaces: %w", err))
	}
	if err := p.deps.Volumes.Remove(ctx, uid); err != nil {
		errs = append(errs, fmt.Errorf("remove volumes: %w", err))
	}
	p.hook("release.volumes/after")
	if err := os.RemoveAll(p.deps.Layout.PodLib(uid) + "/layers"); err != nil {
		errs = append(errs, fmt.Errorf("remove writable layers: %w", err))
	}
	if p.deps.Devices != nil {
		errs = append(errs, p.deps.Devices.Release(uid))
	}
	p.deps.Objects.Unregister(uid)
	return errors.Join(errs...)
}

// removeTraces removes the pod's directories. The one that holds pod.json goes last: while
// it is there a new agent knows that something is to be cleaned up.
func (p *Provider) removeTraces(pod *corev1.Pod) error {
	uid := string(pod.UID)
	layout := p.deps.Layout
	var errs []error
	if pod.Name != "" {
		errs = append(errs, os.RemoveAll(layout.PodLogs(pod.Namespace, pod.Name, uid)), p.sweepLogLinks())
	}
	errs = append(errs, p.deps.Logs.DiscardAll(uid), os.RemoveAll(layout.PodLib(uid)))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove directories of pod: %w", err)
	}
	if err := os.RemoveAll(layout.PodRun(uid)); err != nil {
		return fmt.Errorf("remove directories of pod: %w", err)
	}
	return nil
}
