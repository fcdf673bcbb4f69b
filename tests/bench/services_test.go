package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/cluster/controlplane"
	"github.com/vk-metal/vk-metal/tests/rig"
)

const (
	endpointsEach = 10
	// writers make Services at the same time.
	writers = 16
	// changes of one endpoint that are timed, and connections for the latency.
	changes, connections = 5, 500
	// changeTime bounds how long a proxy may take for one change.
	changeTime = 2 * time.Minute
	// progressTime is how often a proxy that takes long is looked at.
	progressTime = 30 * time.Second
)

// TestServices prints what Services cost, ten endpoints each, by vk-metal on one node and by
// kube-proxy in nftables mode on another, at the same time: to load all, to change one
// endpoint, of memory, and of each connection. VK_METAL_BENCH_SERVICES has the numbers of
// Services, VK_METAL_BENCH_BOUND how long a proxy may take for all of them (Go's notation): one
// that is not ready then is left out.
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
	b := setUpWith(ctx, t, 2)
	if err := b.c.SetServiceProxy(ctx, cluster.NodeName(1), cluster.ServiceProxyKube); err != nil {
		t.Fatal(err)
	}
	s := newServices(b)
	sizes := "10 1000 10000"
	if given := os.Getenv("VK_METAL_BENCH_SERVICES"); given != "" {
		sizes = given
	}
	if given := os.Getenv("VK_METAL_BENCH_BOUND"); given != "" {
		var err error
		if s.bound, err = time.ParseDuration(given); err != nil {
			t.Fatalf("VK_METAL_BENCH_BOUND: %v", err)
		}
	}
	for size := range strings.FieldsSeq(sizes) {
		n, err := strconv.Atoi(size)
		if err != nil {
			t.Fatal(err)
		}
		s.grow(n)
		for _, p := range s.proxies {
			s.measure(p, n)
		}
	}
}

// proxyOn is one service proxy and the node where it works.
type proxyOn struct {
	name    string
	unit    string
	table   string // in families ip and ip6
	node    *rig.Machine
	netns   string
	metrics func() (string, error)
	// sum and count of these say how long programming took: all, and what changed.
	full, change string
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

func newServices(b *bench) *services {
	b.Helper()
	config := rest.CopyConfig(b.c.Config)
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		b.Fatal(err)
	}
	s := &services{bench: b, client: client, bound: 10 * time.Minute}
	for i := range s.servers {
		s.servers[i] = s.serve(byte('0' + i))
	}
	s.proxies = []*proxyOn{
		{name: "vk-metal", unit: "vk-metal.service", table: "vk-metal-services", full: `vk_metal_services_sync_duration_seconds_%s{kind="full"}`, change: `vk_metal_services_sync_duration_seconds_%s{kind="change"}`},
		{name: "kube-proxy", unit: "kube-proxy.service", table: "kube-proxy", full: `kubeproxy_sync_full_proxy_rules_duration_seconds_%s{ip_family="IPv4"}`, change: `kubeproxy_sync_partial_proxy_rules_duration_seconds_%s{ip_family="IPv4"}`},
	}
	for i, p := range s.proxies {
		if p.node, err = b.c.Rig.Machine(cluster.NodeName(i)); err != nil {
			b.Fatal(err)
		}
		leader, err := p.node.Leader(b.ctx)
		if err != nil {
			b.Fatal(err)
		}
		p.netns = fmt.Sprintf("/proc/%d/ns/net", leader)
	}
	s.proxies[0].metrics = func() (string, error) {
		out, err := s.client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes", cluster.NodeName(0), "proxy/metrics").DoRaw(b.ctx)
		return string(out), err
	}
	kube := s.proxies[1]
	kube.metrics = func() (string, error) { return get(b.ctx, kube.netns, "http://127.0.0.1:10249/metrics") }
	s.slice = s.make("canary", 1)
	s.canary, err = s.client.CoreV1().Services(b.ns).Get(b.ctx, "canary", metav1.GetOptions{})
	if err != nil {
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

// make makes a Service and its slice; the canary has one endpoint, others have ten that
// nobody is behind.
func (s *services) make(name string, first int) *discoveryv1.EndpointSlice {
	s.Helper()
	slice, err := s.tryMake(s.ctx, name, first)
	if err != nil {
		s.Fatal(err)
	}
	return slice
}

func (s *services) tryMake(ctx context.Context, name string, first int) (*discoveryv1.EndpointSlice, error) {
	_, err := s.client.CoreV1().Services(s.ns).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To(""), Port: ptr.To(int32(8080)), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
	if name == "canary" {
		slice.Ports[0].Port = ptr.To(int32(s.servers[0].Port))
		slice.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{s.servers[0].IP.String()}}}
	} else {
		for e := range endpointsEach {
			k := first*endpointsEach + e
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 128+k>>16, k>>8&255, k&255)}})
		}
	}
	return s.client.DiscoveryV1().EndpointSlices(s.ns).Create(ctx, slice, metav1.CreateOptions{})
}

// grow makes Services until there are n, and leaves the proxies stopped.
func (s *services) grow(n int) {
	s.Helper()
	for _, p := range s.proxies { // they would program each of them meanwhile
		s.run(p, "systemctl", "stop", p.unit)
	}
	begin := time.Now()
	group, ctx := errgroup.WithContext(s.ctx)
	group.SetLimit(writers)
	for i := s.made; i < n-1; i++ {
		group.Go(func() error {
			_, err := s.tryMake(ctx, fmt.Sprintf("service-%d", i), i)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		s.Fatal(err)
	}
	s.Logf("%d more Services made in %.0f s", n-1-s.made, time.Since(begin).Seconds())
	s.made = n - 1
}

// asks connects to the canary from a node's own network and reads who answers.
func (s *services) asks(p *proxyOn, address string) (answer string, took time.Duration, err error) {
	err = within(p.netns, func() error {
		begin := time.Now()
		conn, err := (&net.Dialer{Timeout: time.Second, FallbackDelay: -1}).DialContext(s.ctx, "tcp4", address)
		took = time.Since(begin)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		out, err := io.ReadAll(conn)
		answer = string(out)
		return err
	})
	return answer, took, err
}

func (s *services) address() string { return net.JoinHostPort(s.canary.Spec.ClusterIP, "80") }

// until waits until the node's proxy leads to the server that is the canary's endpoint now;
// false if it does not within the bound. On the way it says what the proxy has used.
func (s *services) until(p *proxyOn, bound time.Duration) bool {
	s.Helper()
	var last error
	begin := time.Now()
	for told := begin; time.Since(begin) < bound; time.Sleep(200 * time.Microsecond) {
		answer, _, err := s.asks(p, s.address())
		if s.ctx.Err() != nil {
			s.Fatalf("%s does not serve the canary in the time that there is: %v", p.name, err)
		}
		if answer == strconv.Itoa(s.now) {
			return true
		}
		last = err
		if time.Since(told) > progressTime {
			told = time.Now()
			s.Logf("%s does not serve the canary after %.0f s, %.1f s of processor time, resident %s", p.name, time.Since(begin).Seconds(), s.processor(p).Seconds(), s.memory(p))
		}
	}
	s.Logf("%s did not serve the canary within %s, %.1f s of processor time, resident %s: %v", p.name, bound, s.processor(p).Seconds(), s.memory(p), last)
	return false
}

// processor is the processor time that the proxy's process and its children have had.
func (s *services) processor(p *proxyOn) (used time.Duration) {
	s.Helper()
	out := s.run(p, "sh", "-c", "cat /proc/$(systemctl show --property=MainPID --value "+p.unit+")/stat")
	_, after, _ := strings.Cut(out, ") ")
	const first, last, tick = 11, 14, time.Second / 100 // utime, stime, cutime, cstime; USER_HZ
	for i, field := range strings.Fields(after) {
		if n, err := strconv.ParseInt(field, 10, 64); err == nil && i >= first && i <= last {
			used += time.Duration(n) * tick
		}
	}
	return used
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

// measure prints one proxy's figures with n Services.
func (s *services) measure(p *proxyOn, n int) {
	s.Helper()
	s.move()
	s.forget(p)
	begin := time.Now()
	s.run(p, "systemctl", "start", p.unit)
	if !s.until(p, s.bound) {
		s.Logf("%s, %d Services: not within %s", p.name, n, s.bound)
		s.run(p, "systemctl", "stop", p.unit)
		return
	}
	started, used := time.Since(begin), s.processor(p)
	full, _ := s.read(p, p.full)
	var seen Times
	sumBefore, before := s.total(p, p.change)
	for range changes {
		s.move()
		begin := time.Now()
		if !s.until(p, changeTime) {
			break
		}
		seen = append(seen, time.Since(begin))
	}
	sumAfter, after := s.total(p, p.change)
	each := "none counted"
	if after > before {
		each = ms(time.Duration((sumAfter-sumBefore)/(after-before)*float64(time.Second))) + " ms"
	}
	s.Logf("%s, %d Services: start to first connection %.2f s (%.2f s of processor time), of it to program all %.3f s; one endpoint changes: programmed in %s, from the API's answer to the first connection %s; resident %s; connections %s",
		p.name, n, started.Seconds(), used.Seconds(), full, each, seen, s.memory(p), s.latency(p))
}

// forget takes a stopped proxy's tables away, so that each begins with nothing. (kube-proxy
// 1.35.4 must: started over its own rules it does not fill again the chain of an endpoint that
// went and came back.)
func (s *services) forget(p *proxyOn) {
	s.Helper()
	err := within(p.netns, func() error {
		for _, family := range []string{"ip", "ip6"} {
			if out, err := exec.CommandContext(s.ctx, "nft", "add table "+family+" "+p.table+"; delete table "+family+" "+p.table).CombinedOutput(); err != nil {
				return fmt.Errorf("nft: %w\n%s", err, out)
			}
		}
		return nil
	})
	if err != nil {
		s.Fatal(err)
	}
}

// latency compares connections by the Service with connections to the endpoint itself, and
// counts those that did not come about.
func (s *services) latency(p *proxyOn) string {
	s.Helper()
	var direct, service Times
	failed := 0
	err := within(p.netns, func() error {
		for range connections {
			for _, c := range []struct {
				to    string
				times *Times
			}{{s.servers[s.now].String(), &direct}, {s.address(), &service}} {
				begin := time.Now()
				conn, err := (&net.Dialer{Timeout: 5 * time.Second, FallbackDelay: -1}).DialContext(s.ctx, "tcp4", c.to)
				if s.ctx.Err() != nil {
					return err
				}
				if err != nil {
					failed++
					continue
				}
				*c.times = append(*c.times, time.Since(begin))
				_ = conn.Close()
			}
		}
		return nil
	})
	if err != nil {
		s.Fatal(err)
	}
	said := fmt.Sprintf("p50 %d µs, %.2f of direct", service.At(0.5).Microseconds(), float64(service.At(0.5))/float64(direct.At(0.5)))
	if failed > 0 {
		said += fmt.Sprintf(" (%d failed)", failed)
	}
	return said
}

// memory is what the proxy's process has resident, now and at most.
func (s *services) memory(p *proxyOn) string {
	s.Helper()
	out := s.run(p, "sh", "-c", "grep -E '^Vm(RSS|HWM)' /proc/$(systemctl show --property=MainPID --value "+p.unit+")/status")
	found := map[string]int{}
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if kb, err := strconv.Atoi(fields[1]); err == nil {
			found[fields[0]] = kb / 1024
		}
	}
	return fmt.Sprintf("%d MiB (at most %d)", found["VmRSS:"], found["VmHWM:"])
}

func (s *services) run(p *proxyOn, argv ...string) string {
	s.Helper()
	out, err := p.node.Run(s.ctx, argv...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// total is a histogram's sum, in seconds, and count.
func (s *services) total(p *proxyOn, name string) (sum, count float64) {
	s.Helper()
	text, err := p.metrics()
	if err != nil {
		s.Fatalf("read the metrics of %s: %v", p.name, err)
	}
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		for suffix, value := range map[string]*float64{"sum": &sum, "count": &count} {
			if rest, ok := strings.CutPrefix(lines.Text(), fmt.Sprintf(name, suffix)+" "); ok {
				*value, _ = strconv.ParseFloat(strings.TrimSpace(rest), 64)
			}
		}
	}
	return sum, count
}

// read is a histogram's mean, in seconds, and count, once it has one: what is programmed
// works a moment before it is counted.
func (s *services) read(p *proxyOn, name string) (mean, count float64) {
	s.Helper()
	for end := time.Now().Add(s.bound); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if sum, count := s.total(p, name); count > 0 {
			return sum / count, count
		}
	}
	s.Fatalf("%s tells nothing of %s", p.name, name)
	return 0, 0
}

// get reads a page inside a network namespace.
func get(ctx context.Context, path, url string) (page string, err error) {
	dial := func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = within(path, func() (err error) {
			conn, err = (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	out, err := io.ReadAll(response.Body)
	return string(out), err
}
