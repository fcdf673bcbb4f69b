package main

import (
	"fmt"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// slicesByService is an index of EndpointSlices by namespace/name of their Service.
const slicesByService = "followed-service"

// followServices calls each with a Service (nil: it is gone) and its slices whenever one of
// them changes, and synced once all have been told.
func followServices(factory informers.SharedInformerFactory, each func(name string, s *corev1.Service, list []*discoveryv1.EndpointSlice), synced func()) error {
	services, slices := factory.Core().V1().Services(), factory.Discovery().V1().EndpointSlices().Informer()
	if _, there := slices.GetIndexer().GetIndexers()[slicesByService]; !there {
		if err := slices.AddIndexers(cache.Indexers{slicesByService: serviceOfSlice}); err != nil {
			return fmt.Errorf("index EndpointSlices: %w", err)
		}
	}
	look := func(namespace, name string) {
		s, err := services.Lister().Services(namespace).Get(name)
		if err != nil {
			s = nil
		}
		var list []*discoveryv1.EndpointSlice
		found, _ := slices.GetIndexer().ByIndex(slicesByService, namespace+"/"+name)
		for _, obj := range found {
			if slice, ok := obj.(*discoveryv1.EndpointSlice); ok {
				list = append(list, slice)
			}
		}
		each(namespace+"/"+name, s, list)
	}
	onService, err := services.Informer().AddEventHandler(onAny(func(obj any) {
		if s, ok := obj.(*corev1.Service); ok {
			look(s.Namespace, s.Name)
		}
	}))
	if err != nil {
		return fmt.Errorf("watch Services: %w", err)
	}
	onSlice, err := slices.AddEventHandler(onAny(func(obj any) {
		if s, ok := obj.(*discoveryv1.EndpointSlice); ok {
			look(s.Namespace, s.Labels[discoveryv1.LabelServiceName])
		}
	}))
	if err != nil {
		return fmt.Errorf("watch EndpointSlices: %w", err)
	}
	go func() {
		// It ends with the process: the factory is stopped with the agent.
		if cache.WaitForCacheSync(nil, onService.HasSynced, onSlice.HasSynced) {
			synced()
		}
	}()
	return nil
}

func serviceOfSlice(obj any) ([]string, error) {
	s, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok {
		return nil, nil
	}
	return []string{s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]}, nil
}

func onAny(f func(any)) cache.ResourceEventHandlerFuncs {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: f, UpdateFunc: func(_, obj any) { f(obj) },
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			f(obj)
		},
	}
}

// keep stores what is there and drops what is not; it says whether that is a change.
func keep[V any](all map[string]V, name string, now V, there bool) (changed bool) {
	before, was := all[name]
	if there {
		all[name] = now
	} else {
		delete(all, name)
	}
	return there != was || there && !reflect.DeepEqual(before, now)
}
