package devices

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	deviceapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/vk-metal/vk-metal/internal/paths"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	gpu = "example.com/gpu"
	// patience bounds waits for what has no bound of its own.
	patience = time.Minute
)

// testPlugin is a device plugin.
type testPlugin struct {
	deviceapi.UnimplementedDevicePluginServer
	lists chan []*deviceapi.Device
	mu    sync.Mutex
	calls []string
	fail  error
	cdi   []string // names of devices that are answered
}

func (p *testPlugin) GetDevicePluginOptions(context.Context, *deviceapi.Empty) (*deviceapi.DevicePluginOptions, error) {
	return &deviceapi.DevicePluginOptions{}, nil
}

func (p *testPlugin) ListAndWatch(_ *deviceapi.Empty, stream grpc.ServerStreamingServer[deviceapi.ListAndWatchResponse]) error {
	for {
		select {
		case <-stream.Context().Done():
			return nil
		case list := <-p.lists:
			if err := stream.Send(&deviceapi.ListAndWatchResponse{Devices: list}); err != nil {
				return err
			}
		}
	}
}

func (p *testPlugin) note(call string, ids []string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, call+" "+strings.Join(ids, ","))
	return p.fail
}

func (p *testPlugin) GetPreferredAllocation(_ context.Context, r *deviceapi.PreferredAllocationRequest) (*deviceapi.PreferredAllocationResponse, error) {
	c := r.ContainerRequests[0] // the last ones
	ids := c.AvailableDeviceIDs[len(c.AvailableDeviceIDs)-int(c.AllocationSize):]
	return &deviceapi.PreferredAllocationResponse{ContainerResponses: []*deviceapi.ContainerPreferredAllocationResponse{{DeviceIDs: ids}}}, nil
}

func (p *testPlugin) Allocate(_ context.Context, r *deviceapi.AllocateRequest) (*deviceapi.AllocateResponse, error) {
	ids := r.ContainerRequests[0].DevicesIds
	answer := &deviceapi.ContainerAllocateResponse{
		Envs: map[string]string{"GPUS": strings.Join(ids, ",")}, Devices: []*deviceapi.DeviceSpec{{HostPath: "/dev/null", ContainerPath: "/dev/gpu", Permissions: "rw"}},
		Mounts: []*deviceapi.Mount{{HostPath: "/lib", ContainerPath: "/gpu", ReadOnly: true}},
	}
	for _, name := range p.cdi {
		answer.CdiDevices = append(answer.CdiDevices, &deviceapi.CDIDevice{Name: name})
	}
	return &deviceapi.AllocateResponse{ContainerResponses: []*deviceapi.ContainerAllocateResponse{answer}}, p.note("allocate", ids)
}

func (p *testPlugin) PreStartContainer(_ context.Context, r *deviceapi.PreStartContainerRequest) (*deviceapi.PreStartContainerResponse, error) {
	return &deviceapi.PreStartContainerResponse{}, p.note("pre-start", r.DevicesIds)
}

// world is a node with its directories.
type world struct {
	t       *testing.T
	layout  paths.Layout
	m       *Manager
	changed chan struct{}
	pods    []*corev1.Pod
	stop    func()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "dev") // sockets' names are short
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, layout: paths.Layout{Lib: filepath.Join(dir, "lib"), Kubelet: filepath.Join(dir, "kubelet")}}
	for _, d := range []string{w.layout.DevicePlugins(), w.layout.PodResources()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w.restart()
	t.Cleanup(func() { w.stop() })
	return w
}

// restart is what happens when the agent starts anew.
func (w *world) restart() {
	w.t.Helper()
	if w.stop != nil {
		w.stop()
	}
	w.changed = make(chan struct{}, 100)
	m, err := New(Options{
		Layout: w.layout, Changed: func() { w.changed <- struct{}{} }, Pods: func() []*corev1.Pod { return w.pods }, SpecDirs: []string{w.layout.Lib + "/cdi", w.layout.Lib + "/cdi-run"},
		Claimed: func(p *corev1.Pod, c *corev1.Container) []*podresourcesapi.DynamicResource {
			return []*podresourcesapi.DynamicResource{{ClaimName: p.Name + "/" + c.Name}}
		},
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.m = m
	ctx, cancel := context.WithCancel(context.Background())
	done, ready := make(chan error, 1), make(chan struct{})
	go func() { done <- m.Run(ctx, func() { close(ready) }) }()
	<-ready
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
		w.stop = func() {}
	}
}

// plugin serves and registers a plugin with these devices.
func (w *world) plugin(options *deviceapi.DevicePluginOptions, devices ...*deviceapi.Device) (p *testPlugin, stop func()) {
	w.t.Helper()
	p = &testPlugin{lists: make(chan []*deviceapi.Device, 10)}
	listener, err := net.Listen("unix", filepath.Join(w.layout.DevicePlugins(), "gpu.sock"))
	if err != nil {
		w.t.Fatal(err)
	}
	server := grpc.NewServer()
	deviceapi.RegisterDevicePluginServer(server, p)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	stop = func() { server.Stop(); <-done }
	w.t.Cleanup(stop)
	if err := w.register(&deviceapi.RegisterRequest{Version: deviceapi.Version, Endpoint: "gpu.sock", ResourceName: gpu, Options: options}); err != nil {
		w.t.Fatal(err)
	}
	w.list(p, devices...)
	return p, stop
}

// list has the plugin tell of its devices, and waits until that has arrived.
func (w *world) list(p *testPlugin, devices ...*deviceapi.Device) {
	w.t.Helper()
	p.lists <- devices
	w.wait()
}

func (w *world) wait() {
	w.t.Helper()
	select {
	case <-w.changed:
	case <-time.After(patience):
		w.t.Fatal("nothing changed")
	}
}

func (w *world) dial(socket string) *grpc.ClientConn {
	w.t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	return conn
}

func (w *world) register(r *deviceapi.RegisterRequest) error {
	_, err := deviceapi.NewRegistrationClient(w.dial(filepath.Join(w.layout.DevicePlugins(), kubeletSocket))).Register(w.t.Context(), r)
	return err
}

func healthy(ids ...string) (list []*deviceapi.Device) {
	for _, id := range ids {
		list = append(list, &deviceapi.Device{ID: id, Health: deviceapi.Healthy, Topology: &deviceapi.TopologyInfo{Nodes: []*deviceapi.NUMANode{{ID: 1}}}})
	}
	return list
}

func pod(uid string, containers ...corev1.Container) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p-" + uid, UID: types.UID(uid)}, Spec: corev1.PodSpec{Containers: containers}}
}

func container(name, count string) corev1.Container {
	return corev1.Container{Name: name, Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{gpu: resource.MustParse(count), "other.com/x": resource.MustParse("1")}}}
}

func (w *world) allocate(p *corev1.Pod) {
	w.t.Helper()
	if err := w.m.Allocate(w.t.Context(), p); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) has(p *corev1.Pod, container, want string) {
	w.t.Helper()
	lent, err := w.m.Prepare(w.t.Context(), string(p.UID), container)
	if err != nil || lent.Env["GPUS"] != want {
		w.t.Errorf("%s %s has %v %v, want %q", p.Name, container, lent, err, want)
	}
}

func (w *world) resources(all, healthy int64) {
	w.t.Helper()
	capacity, allocatable := w.m.Resources()
	c, a := capacity[gpu], allocatable[gpu]
	if c.Value() != all || a.Value() != healthy {
		w.t.Errorf("capacity %v allocatable %v, want %d %d", c.Value(), a.Value(), all, healthy)
	}
}

func TestDevicesAreLentOnce(t *testing.T) {
	w := newWorld(t)
	p, stop := w.plugin(nil, healthy("a", "b", "c")...)
	w.resources(3, 3)
	first := pod("1", container("x", "1"), container("y", "1"), corev1.Container{Name: "z"})
	w.allocate(first)
	w.allocate(first)
	w.has(first, "x", "a")
	w.has(first, "y", "b")
	w.has(first, "z", "")
	if want := []string{"allocate a", "allocate b"}; !slices.Equal(p.calls, want) {
		t.Errorf("calls %q, want %q", p.calls, want)
	}
	lent, _ := w.m.Prepare(t.Context(), "1", "x")
	if !slices.Equal(lent.Devices, []Device{{"/dev/null", "/dev/gpu", "rw"}}) || !slices.Equal(lent.Mounts, []Mount{{HostPath: "/lib", ContainerPath: "/gpu", ReadOnly: true}}) {
		t.Errorf("lent %+v", lent)
	}
	second := pod("2", container("x", "2"))
	if err := w.m.Allocate(t.Context(), second); err == nil || !strings.Contains(err.Error(), "Requested: 2, Available: 1") {
		t.Errorf("more than there is: %v", err)
	}

	// A new agent knows what was lent, and waits for the plugin.
	stop()
	w.restart()
	w.resources(0, 0)
	w.has(first, "x", "a")
	w.allocate(first)
	if err := w.m.Allocate(t.Context(), second); !errors.Is(err, ErrNotYet) {
		t.Errorf("before the plugin is there: %v", err)
	}
	w.m.begun = w.m.begun.Add(-registerPatience)
	if err := w.m.Allocate(t.Context(), second); err == nil || errors.Is(err, ErrNotYet) {
		t.Errorf("a plugin that does not come: %v", err)
	}
	w.plugin(nil, healthy("a", "b", "c")...)
	if err := w.m.Allocate(t.Context(), second); err == nil || !strings.Contains(err.Error(), "Available: 1") {
		t.Errorf("devices are lent twice: %v", err)
	}
	if err := w.m.Release("1"); err != nil {
		t.Fatal(err)
	}
	w.allocate(second)
	w.has(second, "x", "a,b")
}

func TestUnhealthyDevicesAreNotLent(t *testing.T) {
	w := newWorld(t)
	p, stop := w.plugin(nil, healthy("a", "b")...)
	w.list(p, append(healthy("b"), &deviceapi.Device{ID: "a", Health: deviceapi.Unhealthy})...)
	w.resources(2, 1)
	one := pod("1", container("x", "1"))
	w.allocate(one)
	w.has(one, "x", "b")
	stop()
	w.wait()
	w.resources(2, 0) // for a while: the plugin may come back
	w.m.mu.Lock()
	w.m.known[gpu].gone = time.Now().Add(-goneFor - time.Second)
	w.m.mu.Unlock()
	w.resources(0, 0)
}

func TestInitContainersLeaveTheirDevices(t *testing.T) {
	w := newWorld(t)
	w.plugin(nil, healthy("a", "b")...)
	one := pod("1", container("x", "1"), container("y", "1"))
	one.Spec.InitContainers = []corev1.Container{container("init", "2")}
	w.allocate(one)
	w.has(one, "init", "a,b")
	w.has(one, "x", "a")
	w.has(one, "y", "b")
}

func TestPluginsWishes(t *testing.T) {
	w := newWorld(t)
	p, _ := w.plugin(&deviceapi.DevicePluginOptions{PreStartRequired: true, GetPreferredAllocationAvailable: true}, healthy("a", "b", "c")...)
	one := pod("1", container("x", "2"))
	w.allocate(one)
	w.has(one, "x", "b,c")
	if want := []string{"allocate b,c", "pre-start b,c"}; !slices.Equal(p.calls, want) {
		t.Errorf("calls %q, want %q", p.calls, want)
	}
	p.mu.Lock()
	p.fail = errors.New("not ready")
	p.mu.Unlock()
	if _, err := w.m.Prepare(t.Context(), "1", "x"); err == nil {
		t.Error("a device that is not ready is passed on")
	}
	if err := w.m.Allocate(t.Context(), pod("2", container("x", "1"))); err == nil {
		t.Error("an allocation that failed is passed over")
	}
	p.mu.Lock()
	p.fail = nil
	p.mu.Unlock()
	w.allocate(pod("3", container("x", "1"))) // nothing is lost by what failed
}

func TestBadRegistrations(t *testing.T) {
	w := newWorld(t)
	for name, r := range map[string]*deviceapi.RegisterRequest{
		"version":  {Version: "v9", Endpoint: "e", ResourceName: gpu},
		"resource": {Version: deviceapi.Version, Endpoint: "e", ResourceName: "cpu"},
		"native":   {Version: deviceapi.Version, Endpoint: "e", ResourceName: "kubernetes.io/cpu"},
		"endpoint": {Version: deviceapi.Version, Endpoint: "../../x", ResourceName: gpu},
	} {
		if err := w.register(r); err == nil {
			t.Errorf("a wrong %s is taken", name)
		}
	}
}

func TestPodResources(t *testing.T) {
	w := newWorld(t)
	w.plugin(nil, healthy("a", "b")...)
	one := pod("1", container("x", "1"))
	over := pod("2")
	over.Status.Phase = corev1.PodSucceeded
	w.pods = []*corev1.Pod{one, over}
	w.allocate(one)
	client := podresourcesapi.NewPodResourcesListerClient(w.dial(filepath.Join(w.layout.PodResources(), kubeletSocket)))
	list, err := client.List(t.Context(), &podresourcesapi.ListPodResourcesRequest{})
	if err != nil || len(list.PodResources) != 1 {
		t.Fatalf("list %v %v", list, err)
	}
	device := list.PodResources[0].Containers[0].Devices[0]
	if device.ResourceName != gpu || !slices.Equal(device.DeviceIds, []string{"a"}) || device.Topology.Nodes[0].ID != 1 {
		t.Errorf("device %v", device)
	}
	if claimed := list.PodResources[0].Containers[0].DynamicResources; len(claimed) != 1 || claimed[0].ClaimName != "p-1/x" {
		t.Errorf("claims %v", claimed)
	}
	if got, err := client.Get(t.Context(), &podresourcesapi.GetPodResourcesRequest{PodNamespace: "shop", PodName: "p-1"}); err != nil || got.PodResources.Name != "p-1" {
		t.Errorf("get %v %v", got, err)
	}
	if _, err := client.Get(t.Context(), &podresourcesapi.GetPodResourcesRequest{PodNamespace: "shop", PodName: "none"}); err == nil {
		t.Error("a pod that is not there has resources")
	}
	all, err := client.GetAllocatableResources(t.Context(), &podresourcesapi.AllocatableResourcesRequest{})
	if err != nil || len(all.Devices) != 2 {
		t.Errorf("allocatable %v %v", all, err)
	}
}
