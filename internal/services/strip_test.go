package services

import (
	"fmt"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"
)

func after[V any](t interface{ Fatal(...any) }, s *stripper, v V) V {
	out, err := s.strip(v)
	if err != nil {
		t.Fatal(err)
	}
	return out.(V)
}

// TestStrippedMeansTheSame: whatever Services and slices say, a node does the same with what is
// left of them, and to strip it once more changes nothing.
func TestStrippedMeansTheSame(t *testing.T) {
	node := NodeFacts{Name: "here", Zone: "zone-1"}
	strip := newStripper(node.Name)
	rapid.Check(t, func(t *rapid.T) {
		service, list := anyService(t), anySlices(t)
		now := after(t, strip, service.DeepCopy())
		var small []*discoveryv1.EndpointSlice
		for _, s := range list {
			one := after(t, strip, s.DeepCopy())
			if again := after(t, strip, one); again != one {
				t.Fatalf("stripped twice:\n%v\nonce:\n%v", again, one)
			}
			if serviceOf(one) != serviceOf(s) || objectKey(one) != objectKey(s) {
				t.Fatalf("%v belongs elsewhere now: %v", s, one)
			}
			small = append(small, one)
		}
		if got, want := Resolve(now, small, node, nil), Resolve(service, list, node, nil); !reflect.DeepEqual(got, want) {
			t.Fatalf("stripped:\n%v\nwhole:\n%v", got, want)
		}
		if got, want := checkOf(now, small, node), checkOf(service, list, node); got != want {
			t.Fatalf("health %v, of the whole %v", got, want)
		}
	})
}

func anyService(t *rapid.T) *corev1.Service {
	s := baseService()
	s.Annotations = map[string]string{"a": "b"}
	s.Labels = map[string]string{rapid.SampledFrom([]string{"app", LabelServiceProxyName, corev1.IsHeadlessService}).Draw(t, "label"): "x"}
	s.Spec.Type = rapid.SampledFrom([]corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName}).Draw(t, "type")
	s.Spec.InternalTrafficPolicy = rapid.SampledFrom([]*corev1.ServiceInternalTrafficPolicy{
		nil, ptr.To(corev1.ServiceInternalTrafficPolicyCluster), ptr.To(corev1.ServiceInternalTrafficPolicyLocal),
	}).Draw(t, "internal")
	s.Spec.ExternalTrafficPolicy = rapid.SampledFrom([]corev1.ServiceExternalTrafficPolicy{"", corev1.ServiceExternalTrafficPolicyLocal}).Draw(t, "external")
	s.Spec.SessionAffinity = rapid.SampledFrom([]corev1.ServiceAffinity{corev1.ServiceAffinityNone, corev1.ServiceAffinityClientIP}).Draw(t, "affinity")
	s.Spec.TrafficDistribution = ptr.To(corev1.ServiceTrafficDistributionPreferClose)
	s.Spec.HealthCheckNodePort = 30001
	s.Spec.ExternalIPs = []string{"192.0.2.7"}
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.8"}}
	s.Status.Conditions = []metav1.Condition{{Type: "x"}}
	for i := range s.Spec.Ports {
		s.Spec.Ports[i].NodePort = 30080
	}
	return s
}

func anySlices(t *rapid.T) (list []*discoveryv1.EndpointSlice) {
	maybe := rapid.SampledFrom([]*bool{nil, ptr.To(true), ptr.To(false)})
	names := rapid.SampledFrom([]*string{nil, ptr.To("here"), ptr.To("there")})
	hints := rapid.SampledFrom([]*discoveryv1.EndpointHints{
		nil,
		{},
		{ForZones: []discoveryv1.ForZone{{Name: "zone-1"}}},
		{ForZones: []discoveryv1.ForZone{{Name: "zone-1"}, {Name: "zone-2"}}},
		{ForNodes: []discoveryv1.ForNode{{Name: "here"}}},
	})
	for i := range rapid.IntRange(0, 3).Draw(t, "slices") {
		s := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("slice-", i), Labels: map[string]string{"app": "x"}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports: []discoveryv1.EndpointPort{{
				Name: rapid.SampledFrom([]*string{nil, ptr.To(""), ptr.To("http")}).Draw(t, "port"), Port: ptr.To(int32(8080)),
				Protocol: rapid.SampledFrom([]*corev1.Protocol{nil, ptr.To(corev1.ProtocolTCP), ptr.To(corev1.ProtocolUDP), ptr.To(corev1.Protocol("odd"))}).Draw(t, "protocol"),
			}},
		}
		if rapid.Bool().Draw(t, "owned") {
			s.Labels[discoveryv1.LabelServiceName] = "web"
		}
		for e := range rapid.IntRange(0, 5).Draw(t, "endpoints") {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
				Addresses:  []string{fmt.Sprintf("10.1.%d.%d", i, e), "10.9.9.9"}[:rapid.IntRange(0, 2).Draw(t, "addresses")],
				Conditions: discoveryv1.EndpointConditions{Ready: maybe.Draw(t, "ready"), Serving: maybe.Draw(t, "serving"), Terminating: maybe.Draw(t, "terminating")},
				NodeName:   names.Draw(t, "node"), Hints: hints.Draw(t, "hints"), Zone: ptr.To("zone-1"),
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "p", UID: types.UID(fmt.Sprint(e))},
			})
		}
		list = append(list, s)
	}
	return list
}

// TestStrippedPods: whose pods endpoints are is known of this node's, and where it may be this
// node's.
func TestStrippedPods(t *testing.T) {
	in := &discoveryv1.EndpointSlice{}
	for _, node := range []*string{ptr.To("here"), ptr.To("there"), nil} {
		in.Endpoints = append(in.Endpoints, discoveryv1.Endpoint{NodeName: node, TargetRef: &corev1.ObjectReference{Kind: "Pod", UID: "u"}})
	}
	got := after(t, newStripper("here"), in)
	for i, want := range []bool{true, false, true} {
		if kept := got.Endpoints[i].TargetRef != nil && got.Endpoints[i].TargetRef.UID == "u"; kept != want {
			t.Errorf("endpoint %d: pod known: %t", i, kept)
		}
	}
}

// TestSharedIsBounded: names that come and go do not stay.
func TestSharedIsBounded(t *testing.T) {
	s := newStripper("here")
	for i := range 3 * maxShared {
		if got := s.text(fmt.Sprint("node-", i)); got != fmt.Sprint("node-", i) {
			t.Fatalf("text %d became %q", i, got)
		}
	}
	if len(s.texts) > maxShared {
		t.Errorf("%d texts remembered", len(s.texts))
	}
}
