package endpoints

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/vk-metal/vk-metal/internal/testapi"
)

func service(name string, published bool, selector map[string]string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec:       corev1.ServiceSpec{Selector: selector, PublishNotReadyAddresses: published},
	}
}

func slice(name, service string, list ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: list,
	}
}

func of(uid, node string, ready, terminating bool) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{
		Addresses: []string{"10.0.0.1"}, NodeName: &node, TargetRef: &corev1.ObjectReference{Kind: "Pod", UID: types.UID(uid)},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Terminating: &terminating},
	}
}

func pod(uid string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: uid, UID: types.UID(uid), Labels: labels}}
}

// told collects the UIDs that a source told of.
type told struct {
	mu   sync.Mutex
	uids []types.UID
}

func (c *told) add(uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.uids = append(c.uids, uid)
}

func (c *told) has(uid types.UID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.uids, uid)
}

var web = map[string]string{"app": "web"}

// sources runs a test with both kinds of Source.
func sources(t *testing.T, test func(t *testing.T, client *fake.Clientset, s Source)) {
	for _, kind := range []string{"shared", "selected"} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := testapi.NewClientset(service("web", false, web), service("all", true, web), service("db", false, map[string]string{"app": "db"}))
				factory := informers.NewSharedInformerFactory(client, 0)
				ctx, cancel := context.WithCancel(t.Context())
				defer func() { cancel(); synctest.Wait() }()
				services := factory.Core().V1().Services()
				services.Informer()
				var source Source
				if kind == "shared" {
					shared, err := NewShared("n1", factory.Discovery().V1().EndpointSlices().Informer(), services.Lister(), func() bool { return false })
					if err != nil {
						t.Fatal(err)
					}
					source = shared
				} else {
					selected, err := NewSelected("n1", client, services, slog.New(slog.DiscardHandler))
					if err != nil {
						t.Fatal(err)
					}
					source = selected
					go func() { _ = selected.Run(ctx) }()
				}
				source.Track(pod("early", web))
				factory.Start(ctx.Done())
				synctest.Wait()
				test(t, client, source)
			})
		})
	}
}

func TestSourceFollowsSlices(t *testing.T) {
	sources(t, func(t *testing.T, client *fake.Clientset, s Source) {
		api, c := client.DiscoveryV1().EndpointSlices("ns"), &told{}
		s.OnChange(c.add)
		s.Track(pod("late", web))
		synctest.Wait()
		for _, uid := range []types.UID{"early", "late"} {
			if list, state := s.Of(uid); state != Known || len(list) != 0 {
				t.Fatalf("%s before any slice: %v %v", uid, list, state)
			}
		}
		made := slice("web-1", "web", of("early", "n1", true, false), of("other", "n2", true, false))
		if _, err := api.Create(t.Context(), made, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if list, _ := s.Of("early"); len(list) != 1 || list[0] != (Endpoint{Slice: "web-1", Ready: true}) || !c.has("early") {
			t.Errorf("offered: %v, told %v", list, c.uids)
		}
		if list, _ := s.Of("other"); len(list) != 0 {
			t.Errorf("a pod of another node: %v", list)
		}
		c.uids = nil
		if _, err := api.Update(t.Context(), slice("web-1", "web"), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if list, _ := s.Of("early"); len(list) != 0 || !c.has("early") {
			t.Errorf("taken out: %v, told %v", list, c.uids)
		}
	})
}

func TestSourceKnowsPublishedAddresses(t *testing.T) {
	sources(t, func(t *testing.T, client *fake.Clientset, s Source) {
		if _, err := client.DiscoveryV1().EndpointSlices("ns").Create(t.Context(), slice("all-1", "all", of("early", "n1", true, true)), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if list, _ := s.Of("early"); len(list) != 1 || !list[0].Published || !list[0].Terminating {
			t.Errorf("%+v", list)
		}
	})
}

// TestSelectedWatchesNoMoreThanItMust counts the watches over changes of labels, selectors and pods.
func TestSelectedWatchesNoMoreThanItMust(t *testing.T) {
	sources(t, func(t *testing.T, client *fake.Clientset, s Source) {
		selected, ok := s.(*Selected)
		if !ok {
			t.Skip("this one watches nothing itself")
		}
		count := func(want ...string) {
			t.Helper()
			synctest.Wait()
			selected.mu.Lock()
			defer selected.mu.Unlock()
			for _, key := range want {
				if selected.watches[key] == nil {
					t.Errorf("%s is not watched", key)
				}
			}
			if len(selected.watches) != len(want) {
				t.Errorf("%d watches, want %v", len(selected.watches), want)
			}
		}
		count("ns/web", "ns/all")
		s.Track(pod("db", map[string]string{"app": "db"}))
		count("ns/web", "ns/all", "ns/db")
		s.Track(pod("db", map[string]string{"app": "web"}))
		count("ns/web", "ns/all")
		if _, err := client.CoreV1().Services("ns").Update(t.Context(), service("all", true, map[string]string{"no": "body"}), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		count("ns/web")
		if err := client.CoreV1().Services("ns").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		count()
		s.Forget("early")
		s.Forget("early")
		count()
	})
}

func TestSelectedThatMayNotWatchSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := testapi.NewClientset(service("web", false, web))
		client.PrependReactor("list", "endpointslices", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "endpointslices"}, "", nil)
		})
		factory := informers.NewSharedInformerFactory(client, 0)
		s, err := NewSelected("n1", client, factory.Core().V1().Services(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer func() { cancel(); synctest.Wait() }()
		go func() { _ = s.Run(ctx) }()
		factory.Start(ctx.Done())
		synctest.Wait()
		s.Track(pod("p", web))
		synctest.Wait()
		if _, state := s.Of("p"); state != Forbidden {
			t.Errorf("state %v", state)
		}
	})
}
