package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/cluster/controlplane"
)

const (
	endpointsEach = 10
	// growTime bounds how long the API server may take to hear of Services.
	growTime = 3 * time.Minute
	// progressTime is how often what takes long is looked at.
	progressTime = 30 * time.Second
)

// TestServices prints what Services cost, ten endpoints each, by vk-metal on one node and by
// kube-proxy in nftables mode, of two versions, on two more: to load all, to change one endpoint,
// of memory, and of each connection. One works at a time. VK_METAL_BENCH_SERVICES has the numbers
// of Services, VK_METAL_BENCH_PROXIES the proxies, VK_METAL_BENCH_BOUND how long one may take for
// all Services (Go's notation): one that is not ready then is left out from there on.
func TestServices(t *testing.T) {
	if os.Getenv("VK_METAL_BENCH") == "" {
		t.Skip("boots a cluster to measure it: set VK_METAL_BENCH=1 (make bench)")
	}
	limit := benchTime
	if end, ok := t.Deadline(); ok { // a program that is ended takes no cluster down
		limit = min(limit, time.Until(end)-2*time.Minute)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	bound, err := time.ParseDuration(setting("VK_METAL_BENCH_BOUND", "10m"))
	if err != nil {
		t.Fatalf("VK_METAL_BENCH_BOUND: %v", err)
	}
	names := strings.Fields(setting("VK_METAL_BENCH_PROXIES", "vk-metal kube-proxy-new kube-proxy"))
	b := setUpWith(ctx, t, len(names))
	s := newServices(b, bound)
	for i, name := range names {
		s.proxies = append(s.proxies, s.proxyOn(cluster.NodeName(i), cluster.ServiceProxy(name)))
	}
	for size := range strings.FieldsSeq(setting("VK_METAL_BENCH_SERVICES", "10 1000 10000")) {
		n, err := strconv.Atoi(size)
		if err != nil {
			t.Fatalf("VK_METAL_BENCH_SERVICES: %v", err)
		}
		s.stopAll()
		s.grow(n)
		for _, p := range s.proxies {
			s.measure(p, n)
		}
	}
}

func setting(name, otherwise string) string {
	if given := os.Getenv(name); given != "" {
		return given
	}
	return otherwise
}

// services are the Services of the benchmark. The canary is the last of them: its endpoint is
// a server outside of the nodes.
type services struct {
	*bench
	client  kubernetes.Interface
	proxies []*proxyOn
	made    int
	canary  *corev1.Service
	slice   *discoveryv1.EndpointSlice
	servers [2]*net.TCPAddr
	now     int           // which of the servers
	bound   time.Duration // for all Services
}

func newServices(b *bench, bound time.Duration) *services {
	b.Helper()
	config := rest.CopyConfig(b.c.Config)
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		b.Fatal(err)
	}
	s := &services{bench: b, client: client, bound: bound}
	for i := range s.servers {
		s.servers[i] = s.serve(byte('0' + i))
	}
	if err := s.makeCanary(); err != nil {
		b.Fatal(err)
	}
	return s
}

// within runs a function on a thread in a network namespace.
func within(path string, run func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		ns, err := netns.GetFromPath(path)
		if err == nil {
			err = errors.Join(netns.Set(ns), ns.Close())
		}
		if err == nil {
			err = run()
		}
		done <- err
	}()
	return <-done
}

// serve answers every connection with one byte, at the control plane's address.
func (s *services) serve(answer byte) *net.TCPAddr {
	s.Helper()
	at, err := s.c.Rig.Endpoint(controlplane.EndpointName(0))
	if err != nil {
		s.Fatal(err)
	}
	var listener net.Listener
	err = within(at.NetnsPath, func() (err error) {
		listener, err = (&net.ListenConfig{}).Listen(s.ctx, "tcp4", net.JoinHostPort(at.V4.String(), "0"))
		return err
	})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte{answer})
			_ = conn.Close()
		}
	}()
	return listener.Addr().(*net.TCPAddr)
}

// grow makes Services until there are n, and waits until the API server knows them.
func (s *services) grow(n int) {
	s.Helper()
	begin := time.Now()
	if err := s.fill(s.made, n-1); err != nil {
		s.Fatalf("make %d Services: %v", n, err)
	}
	if last := n - 2; last >= s.made {
		s.awaitSlice(nameOf(last))
	}
	s.Logf("%d more Services made in %.0f s", n-1-s.made, time.Since(begin).Seconds())
	s.made = n - 1
}

// awaitSlice waits until the API server's cache has a slice, of which all watches are fed.
func (s *services) awaitSlice(name string) {
	s.Helper()
	err := wait.PollUntilContextTimeout(s.ctx, 100*time.Millisecond, growTime, true, func(ctx context.Context) (bool, error) {
		_, err := s.client.DiscoveryV1().EndpointSlices(s.ns).Get(ctx, name, metav1.GetOptions{ResourceVersion: "0"})
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		s.Fatalf("wait for slice %s: %v", name, err)
	}
}

// makeCanary makes the canary and its slice.
func (s *services) makeCanary() (err error) {
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "canary"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}
	if s.canary, err = s.client.CoreV1().Services(s.ns).Create(s.ctx, service, metav1.CreateOptions{}); err != nil {
		return err
	}
	s.slice, err = s.client.DiscoveryV1().EndpointSlices(s.ns).Create(s.ctx, s.sliceOf("canary", 0), metav1.CreateOptions{})
	return err
}

// sliceOf is a slice: the canary has one endpoint, others have ten that nobody is behind.
func (s *services) sliceOf(name string, index int) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To(""), Port: ptr.To(int32(8080)), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
	if name == "canary" {
		slice.Ports[0].Port = ptr.To(int32(s.servers[0].Port))
		slice.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{s.servers[0].IP.String()}}}
		return slice
	}
	for e := range endpointsEach {
		k := index*endpointsEach + e
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 128+k>>16, k>>8&255, k&255)}})
	}
	return slice
}

// move makes the other server the canary's only endpoint.
func (s *services) move() {
	s.Helper()
	s.now = 1 - s.now
	s.slice.Ports[0].Port = ptr.To(int32(s.servers[s.now].Port))
	s.slice.Endpoints[0].Addresses[0] = s.servers[s.now].IP.String()
	slice, err := s.client.DiscoveryV1().EndpointSlices(s.ns).Update(s.ctx, s.slice, metav1.UpdateOptions{})
	if err != nil {
		s.Fatal(err)
	}
	s.slice = slice
}
