// Package testapi stands in for an API server where a test needs no real one.
package testapi

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	clienttesting "k8s.io/client-go/testing"
)

// NewClientset returns a fake clientset whose watches begin with what is there. Those of
// client-go's begin with what happens next: an informer never hears of an object that was
// made between its list and its watch.
func NewClientset(objects ...runtime.Object) *fake.Clientset {
	client := fake.NewClientset(objects...)
	client.PrependWatchReactor("*", func(action clienttesting.Action) (bool, watch.Interface, error) {
		var options metav1.ListOptions
		if action, ok := action.(clienttesting.WatchActionImpl); ok {
			options = action.ListOptions
		}
		// First the watch, so that nothing is between the two; an informer takes an object twice.
		resource, namespace := action.GetResource(), action.GetNamespace()
		changes, err := client.Tracker().Watch(resource, namespace, options)
		if err != nil {
			return true, nil, err
		}
		there, err := list(client.Tracker(), resource, namespace)
		if err != nil {
			changes.Stop()
			return true, nil, err
		}
		return true, beginningWith(there, changes), nil
	})
	return client
}

func list(tracker clienttesting.ObjectTracker, resource schema.GroupVersionResource, namespace string) ([]runtime.Object, error) {
	for kind := range scheme.Scheme.KnownTypes(resource.GroupVersion()) {
		gvk := resource.GroupVersion().WithKind(kind)
		if plural, _ := meta.UnsafeGuessKindToResource(gvk); plural != resource {
			continue
		}
		list, err := tracker.List(resource, gvk, namespace)
		if err != nil {
			return nil, err
		}
		return meta.ExtractList(list)
	}
	return nil, fmt.Errorf("no kind has the resource %s", resource)
}

func beginningWith(objects []runtime.Object, changes watch.Interface) watch.Interface {
	events := make(chan watch.Event)
	out := watch.NewProxyWatcher(events)
	go func() {
		defer close(events)
		defer changes.Stop()
		for _, object := range objects {
			select {
			case events <- watch.Event{Type: watch.Added, Object: object}:
			case <-out.StopChan():
				return
			}
		}
		for {
			select {
			case event, open := <-changes.ResultChan():
				if !open {
					return
				}
				select {
				case events <- event:
				case <-out.StopChan():
					return
				}
			case <-out.StopChan():
				return
			}
		}
	}()
	return out
}
