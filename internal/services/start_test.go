package services

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/internal/testnet"
)

// asServed makes an object what controllers and the API server make of it.
func asServed(m metav1.Object, i int) {
	m.SetUID(types.UID(fmt.Sprintf("7a3c1f0e-5d2b-4f7e-9a41-%012d", i)))
	m.SetResourceVersion(strconv.Itoa(100000 + i))
	m.SetCreationTimestamp(metav1.Unix(1700000000, 0))
	m.SetManagedFields([]metav1.ManagedFieldsEntry{{
		Manager: "kube-controller-manager", Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", Time: ptr.To(metav1.Unix(1700000000, 0)),
		FieldsType: "FieldsV1", FieldsV1: &metav1.FieldsV1{Raw: []byte(`{"f:metadata":{"f:labels":{".":{},"f:app":{}}},"f:spec":{"f:ports":{".":{},"k:{\"port\":80}":{".":{},"f:port":{},"f:targetPort":{}}},"f:selector":{},"f:type":{}}}`)},
	}})
}

// servedObjects are manyObjects as an API server has them.
func servedObjects(n int) (services, slices []k8sruntime.Object) {
	all, lists := manyObjects(n)
	for i, s := range all {
		asServed(s, i)
		s.Labels = map[string]string{"app": s.Name, "app.kubernetes.io/part-of": "shop"}
		s.Annotations = map[string]string{"meta.helm.sh/release-name": "shop", "meta.helm.sh/release-namespace": "ns"}
		s.Spec.Selector = map[string]string{"app": s.Name}
		slice := lists[i][0]
		asServed(slice, i)
		slice.Name += "-x7k2p"
		slice.Labels = map[string]string{discoveryv1.LabelServiceName: s.Name, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io", "app": s.Name}
		slice.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: "2026-11-21T10:00:00Z"}
		for e := range slice.Endpoints {
			k := i*endpointsEach + e
			slice.Endpoints[e].Conditions = discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)}
			slice.Endpoints[e].NodeName = ptr.To(fmt.Sprintf("node-%04d", k%5000))
			slice.Endpoints[e].Zone = ptr.To(fmt.Sprintf("zone-%d", k%3))
			slice.Endpoints[e].TargetRef = &corev1.ObjectReference{
				Kind: "Pod", Namespace: "ns", Name: fmt.Sprintf("%s-6d5f9c7b8d-%05d", s.Name, e), UID: types.UID(fmt.Sprintf("0f1e2d3c-4b5a-4697-8877-%012d", k)),
			}
		}
		services, slices = append(services, s), append(slices, slice)
	}
	return services, slices
}

// framed are objects as a watch sends them, and the bookmark after them.
func framed(t testing.TB, gv schema.GroupVersion, list []k8sruntime.Object, end k8sruntime.Object) []byte {
	t.Helper()
	inner := scheme.Codecs.EncoderForVersion(protobuf.NewSerializer(scheme.Scheme, scheme.Scheme), gv)
	outer := protobuf.NewRawSerializer(scheme.Scheme, scheme.Scheme)
	var out bytes.Buffer
	frames := protobuf.LengthDelimitedFramer.NewFrameWriter(&out)
	send := func(kind string, obj k8sruntime.Object) {
		var one, event bytes.Buffer
		testnet.Must(t, inner.Encode(obj, &one))
		testnet.Must(t, outer.Encode(&metav1.WatchEvent{Type: kind, Object: k8sruntime.RawExtension{Raw: one.Bytes()}}, &event))
		_, err := frames.Write(event.Bytes())
		testnet.Must(t, err)
	}
	for _, obj := range list {
		send("ADDED", obj)
	}
	send("BOOKMARK", end)
	return out.Bytes()
}

// serveMany is an API server that streams n Services and their slices.
func serveMany(t testing.TB, n int) *rest.Config {
	t.Helper()
	services, slices := servedObjects(n)
	last := metav1.ObjectMeta{ResourceVersion: "999999", Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}}
	streams := map[string][]byte{
		"/api/v1/services":                         framed(t, corev1.SchemeGroupVersion, services, &corev1.Service{ObjectMeta: last}),
		"/apis/discovery.k8s.io/v1/endpointslices": framed(t, discoveryv1.SchemeGroupVersion, slices, &discoveryv1.EndpointSlice{ObjectMeta: last}),
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		stream, known := streams[r.URL.Path]
		if !known || r.URL.Query().Get("sendInitialEvents") != "true" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf;stream=watch")
		_, _ = io.Copy(w, bytes.NewReader(stream))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	return &rest.Config{
		Host: server.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true, NextProtos: []string{"h2"}}, QPS: -1,
		ContentConfig: rest.ContentConfig{ContentType: k8sruntime.ContentTypeProtobuf, AcceptContentTypes: k8sruntime.ContentTypeProtobuf},
	}
}

// BenchmarkStart runs a Proxy from nothing until the kernel has all that a streaming API server
// has, and says what is in use then.
func BenchmarkStart(b *testing.B) {
	n := 10000
	config := serveMany(b, n)
	var spent usage
	var live, resident float64
	for b.Loop() {
		b.StopTimer()
		w := newWorld(b)
		debug.FreeOSMemory()
		before := inUse()
		client, err := kubernetes.NewForConfig(config)
		testnet.Must(b, err)
		b.StartTimer()
		start := used()
		factory := informers.NewSharedInformerFactory(client, 0)
		p, err := New(Options{
			Node: NodeFacts{Name: "node-0007"}, PodLinkGroup: testnet.LinkGroup, HostNetNS: w.Path("node"),
			Services: factory.Core().V1().Services(), Slices: factory.Discovery().V1().EndpointSlices(), Log: slog.New(slog.DiscardHandler),
		})
		testnet.Must(b, err)
		ctx, cancel := context.WithCancel(b.Context())
		factory.Start(ctx.Done())
		ready, done := make(chan struct{}, 1), make(chan error, 1)
		go func() { done <- p.Run(ctx, func() { signal(ready) }) }()
		<-ready
		spent = spent.plus(used().minus(start))
		b.StopTimer()
		resident = rss()
		if got := len(p.state.ports); got != n {
			b.Fatalf("%d Services", got)
		}
		live = inUse() - before
		if path := os.Getenv("VK_METAL_HEAP"); path != "" {
			writeHeap(b, path)
		}
		cancel()
		testnet.Must(b, <-done)
		factory.Shutdown()
		testnet.Must(b, p.Close())
		b.StartTimer()
	}
	b.ReportMetric(spent.user/float64(b.N), "user-ms/op")
	b.ReportMetric(spent.system/float64(b.N), "system-ms/op")
	b.ReportMetric(live, "live-MiB")
	b.ReportMetric(resident, "resident-MiB")
}

// inUse is the heap after a collection, in MiB.
func inUse() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// rss is what this process has resident, in MiB.
func rss() float64 {
	text, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, _ := strconv.Atoi(strings.Fields(rest)[0])
			return float64(kb) / 1024
		}
	}
	return 0
}

func writeHeap(b *testing.B, path string) {
	f, err := os.Create(path)
	testnet.Must(b, err)
	testnet.Must(b, pprof.WriteHeapProfile(f))
	testnet.Must(b, f.Close())
}
