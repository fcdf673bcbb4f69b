package e2e

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/vk-metal/vk-metal/tests/workload"
)

// load sends requests to a service's ready endpoints as a service proxy would choose
// them, a new connection each, until it is stopped.
type load struct {
	slices cache.SharedIndexInformer
	client *http.Client
	stop   context.CancelFunc
	done   sync.WaitGroup

	mu       sync.Mutex
	requests int
	failures []string
}

// startLoad makes the service "web" and asks it from several clients at once.
func (e *env) startLoad(clients int) *load {
	e.Helper()
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "web"},
			Ports:    []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(workload.Port)}},
		},
	}
	if _, err := e.c.Client.CoreV1().Services(e.ns).Create(e.Context(), service, metav1.CreateOptions{}); err != nil {
		e.Fatal(err)
	}
	ctx, cancel := context.WithCancel(e.Context())
	factory := informers.NewSharedInformerFactoryWithOptions(e.c.Client, 0, informers.WithNamespace(e.ns))
	l := &load{
		slices: factory.Discovery().V1().EndpointSlices().Informer(), stop: cancel,
		client: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DialContext: e.c.Dial, DisableKeepAlives: true}},
	}
	factory.Start(ctx.Done())
	cache.WaitForCacheSync(ctx.Done(), l.slices.HasSynced)
	e.Cleanup(func() { l.end() })
	for range clients {
		l.done.Go(func() { l.run(ctx) })
	}
	return l
}

func (l *load) run(ctx context.Context) {
	for ctx.Err() == nil {
		address := l.pick()
		if address == "" {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		err := l.ask(ctx, address)
		if ctx.Err() != nil {
			return
		}
		l.mu.Lock()
		l.requests++
		if err != nil {
			l.failures = append(l.failures, fmt.Sprintf("%s %s: %v", time.Now().Format("15:04:05.000"), address, err))
		}
		l.mu.Unlock()
	}
}

func (l *load) ask(ctx context.Context, address string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/hostname", nil)
	if err != nil {
		return err
	}
	response, err := l.client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", response.Status)
	}
	return nil
}

// pick chooses a ready endpoint.
func (l *load) pick() string {
	var ready []string
	for _, object := range l.slices.GetStore().List() {
		slice, ok := object.(*discoveryv1.EndpointSlice)
		if !ok || len(slice.Ports) == 0 || slice.Ports[0].Port == nil {
			continue
		}
		port := strconv.Itoa(int(*slice.Ports[0].Port))
		for _, endpoint := range slice.Endpoints {
			if endpoint.Conditions.Ready != nil && *endpoint.Conditions.Ready {
				ready = append(ready, net.JoinHostPort(endpoint.Addresses[0], port))
			}
		}
	}
	if len(ready) == 0 {
		return ""
	}
	return ready[rand.IntN(len(ready))]
}

// end stops the load and returns what it saw.
func (l *load) end() (requests int, failures []string) {
	l.stop()
	l.done.Wait()
	return l.requests, l.failures
}

func TestRollingUpdateLosesNoRequest(t *testing.T) {
	e := setup(t)
	e.deploy(6)
	l := e.startLoad(4)
	before := e.web()
	start := time.Now()
	e.deploy(6, func(spec *corev1.PodSpec) { spec.Containers[0].Env = []corev1.EnvVar{{Name: "VERSION", Value: "2"}} })
	requests, failures := l.end()
	t.Logf("rolling update of 6 pods took %s under %d requests, %d failed", time.Since(start).Round(100*time.Millisecond), requests, len(failures))
	if requests < 100 {
		t.Errorf("only %d requests", requests)
	}
	for _, failure := range failures {
		t.Errorf("request failed: %s", failure)
	}
	for _, pod := range e.web() {
		for _, old := range before {
			if pod.UID == old.UID {
				t.Errorf("pod %s was not replaced", pod.Name)
			}
		}
	}
}

func TestScale(t *testing.T) {
	e := setup(t)
	for _, replicas := range []int32{6, 20, 2} {
		start := time.Now()
		e.deploy(replicas)
		t.Logf("%d replicas after %s", replicas, time.Since(start).Round(100*time.Millisecond))
		e.checkMesh()
	}
}
