package services

import (
	"fmt"
	"net/netip"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/internal/testnet"
)

const endpointsEach = 10

// manyService is the i-th Service of a big cluster with its slice of n endpoints.
func manyService(i, n int) (*corev1.Service, []*discoveryv1.EndpointSlice) {
	s := baseService()
	s.Name = "svc-" + strconv.Itoa(i)
	s.Spec.ClusterIP = netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)}).String()
	s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: s.Name},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To(""), Port: ptr.To(int32(8080)), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
	for e := range n {
		k := i*endpointsEach + e
		addr := netip.AddrFrom4([4]byte{10, 128 + byte(k>>16), byte(k >> 8), byte(k)})
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{addr.String()}})
	}
	return s, []*discoveryv1.EndpointSlice{slice}
}

// manyObjects are n Services with their slices.
func manyObjects(n int) (services []*corev1.Service, slices [][]*discoveryv1.EndpointSlice) {
	for i := range n {
		s, list := manyService(i, endpointsEach)
		services, slices = append(services, s), append(slices, list)
	}
	return services, slices
}

func resolveAll(services []*corev1.Service, slices [][]*discoveryv1.EndpointSlice) *state {
	st := newState()
	for i, s := range services {
		st.load("ns/"+s.Name, 0, Resolve(s, slices[i], NodeFacts{Name: testnet.NodeName}, nil))
	}
	return st
}

func manyServices(n int) *state { return resolveAll(manyObjects(n)) }

// BenchmarkLoad puts whole clusters into the kernel, from the API's objects on: into an
// empty namespace, as a host's first start does, and then over what is there. Of each part it
// says what it takes of the processor: on a busy host wall times say little.
func BenchmarkLoad(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		for _, again := range []bool{false, true} {
			b.Run(fmt.Sprintf("%d/again=%t", n, again), func(b *testing.B) {
				parts := map[string]usage{}
				part := func(name string, do func()) {
					start := used()
					do()
					parts[name] = parts[name].plus(used().minus(start))
				}
				var st *state
				for b.Loop() {
					b.StopTimer()
					w := newWorld(b)
					t := newTable(w.Node, testnet.LinkGroup)
					if again {
						testnet.Must(b, t.replace(manyServices(n).whole()))
					}
					services, slices := manyObjects(n)
					runtime.GC()
					b.StartTimer()
					part("resolve", func() { st = resolveAll(services, slices) })
					var content listed
					part("render", func() { content, _ = st.whole() })
					part("kernel", func() { testnet.Must(b, t.replace(content, nil)) })
					b.StopTimer()
					t.close()
					b.StartTimer()
				}
				for name, u := range parts {
					b.ReportMetric(u.user/float64(b.N), name+"-user-ms/op")
					b.ReportMetric(u.system/float64(b.N), name+"-system-ms/op")
				}
				b.ReportMetric(heap(st), "heap-MiB")
			})
		}
	}
}

// usage is processor time in milliseconds.
type usage struct{ user, system float64 }

func (u usage) plus(o usage) usage  { return usage{u.user + o.user, u.system + o.system} }
func (u usage) minus(o usage) usage { return usage{u.user - o.user, u.system - o.system} }

// used is the processor time of this process.
func used() usage {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return usage{float64(u.Utime.Nano()) / 1e6, float64(u.Stime.Nano()) / 1e6}
}

// BenchmarkChange programs one Service's change: an endpoint replaced, and one more or less.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		w := newWorld(b)
		t := newTable(w.Node, testnet.LinkGroup)
		st := manyServices(n)
		testnet.Must(b, t.replace(st.whole()))
		change := func(count, first int) {
			s, slices := manyService(n/2, count)
			slices[0].Endpoints[0].Addresses[0] = fmt.Sprintf("10.200.0.%d", first)
			testnet.Must(b, t.change(st.set("ns/"+s.Name, 0, Resolve(s, slices, NodeFacts{Name: testnet.NodeName}, st.ports["ns/"+s.Name]))))
		}
		i := 0
		b.Run(fmt.Sprintf("replace/%d", n), func(b *testing.B) {
			for b.Loop() {
				i++
				change(endpointsEach, 1+i%2)
			}
		})
		b.Run(fmt.Sprintf("scale/%d", n), func(b *testing.B) {
			for b.Loop() {
				i++
				change(endpointsEach-i%2, 1)
			}
		})
		t.close()
	}
}

// heap is what is in use while st is, in MiB.
func heap(st *state) float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	runtime.KeepAlive(st)
	return float64(m.HeapAlloc) / (1 << 20)
}
