// Package testapi stands in for an API server where a test needs no real one.
package testapi

import (
	"fmt"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	clienttesting "k8s.io/client-go/testing"
)

// NewClientset returns a fake clientset whose watches begin with what was deleted since the
// last list of their resource, and with what is there. Those of client-go's begin with what
// happens next: an informer never hears of an object that was made, or deleted, between its
// list and its watch. A watch of one object, by its name, is of no other, as a server's.
func NewClientset(objects ...runtime.Object) *fake.Clientset {
	client := fake.NewClientset(objects...)
	past := &deletions{client: client, seen: map[schema.GroupVersionResource]int{}}
	client.PrependReactor("delete", "*", past.deleted)
	client.PrependReactor("list", "*", past.listed)
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
		return true, beginningWith(append(past.since(resource, namespace, there), added(there)...), changes, one(options)), nil
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

// deletions are all that there were.
type deletions struct {
	client *fake.Clientset

	mu   sync.Mutex
	all  []deletion
	seen map[schema.GroupVersionResource]int // how many there were at the last list
}

type deletion struct {
	resource schema.GroupVersionResource
	object   runtime.Object
}

// deleted is a reactor that notes what the next one deletes.
func (d *deletions) deleted(action clienttesting.Action) (bool, runtime.Object, error) {
	a, ok := action.(clienttesting.DeleteAction)
	if !ok {
		return false, nil, nil
	}
	object, err := d.client.Tracker().Get(a.GetResource(), a.GetNamespace(), a.GetName())
	if err != nil {
		return false, nil, nil //nolint:nilerr // the next reactor says so
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = append(d.all, deletion{a.GetResource(), object})
	return false, nil, nil
}

// listed is a reactor that notes what the next one's answer has no more.
func (d *deletions) listed(action clienttesting.Action) (bool, runtime.Object, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen[action.GetResource()] = len(d.all)
	return false, nil, nil
}

// since are the deletions after the last list, but for what is there again.
func (d *deletions) since(resource schema.GroupVersionResource, namespace string, there []runtime.Object) (events []watch.Event) {
	again := map[string]bool{}
	for _, object := range there {
		again[nameOf(object)] = true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, gone := range d.all[d.seen[resource]:] {
		name := nameOf(gone.object)
		if gone.resource == resource && !again[name] && (namespace == "" || strings.HasPrefix(name, namespace+"/")) {
			events = append(events, watch.Event{Type: watch.Deleted, Object: gone.object})
		}
	}
	return events
}

func nameOf(object runtime.Object) string {
	m, err := meta.Accessor(object)
	if err != nil {
		return ""
	}
	return m.GetNamespace() + "/" + m.GetName()
}

func added(objects []runtime.Object) (events []watch.Event) {
	for _, object := range objects {
		events = append(events, watch.Event{Type: watch.Added, Object: object})
	}
	return events
}

// one says whether an event is of the object that the options name, if they name one.
func one(options metav1.ListOptions) func(watch.Event) bool {
	selector, err := fields.ParseSelector(options.FieldSelector)
	if err != nil {
		return func(watch.Event) bool { return false }
	}
	name, only := selector.RequiresExactMatch(metav1.ObjectNameField)
	return func(event watch.Event) bool {
		m, err := meta.Accessor(event.Object)
		return !only || err != nil || m.GetName() == name
	}
}

func beginningWith(first []watch.Event, changes watch.Interface, wanted func(watch.Event) bool) watch.Interface {
	events := make(chan watch.Event)
	out := watch.NewProxyWatcher(events)
	go func() {
		defer close(events)
		defer changes.Stop()
		for _, event := range first {
			if !pass(event, wanted, events, out.StopChan()) {
				return
			}
		}
		for {
			select {
			case event, open := <-changes.ResultChan():
				if !open || !pass(event, wanted, events, out.StopChan()) {
					return
				}
			case <-out.StopChan():
				return
			}
		}
	}()
	return out
}

// pass passes on what is wanted; false says that nobody listens any more.
func pass(event watch.Event, wanted func(watch.Event) bool, to chan<- watch.Event, stop <-chan struct{}) bool {
	if !wanted(event) {
		return true
	}
	select {
	case to <- event:
		return true
	case <-stop:
		return false
	}
}
