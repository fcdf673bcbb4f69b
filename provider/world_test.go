package provider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/vk-metal/vk-metal/internal/endpoints"
	"github.com/vk-metal/vk-metal/internal/images"
	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/internal/sandbox"
	"github.com/vk-metal/vk-metal/internal/seccomp"
	"github.com/vk-metal/vk-metal/internal/staticpods"
	"github.com/vk-metal/vk-metal/internal/testapi"
	"github.com/vk-metal/vk-metal/internal/volumes"
	"github.com/vk-metal/vk-metal/netns"
	"github.com/vk-metal/vk-metal/probes"
	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/systemd"
)

// world is a machine and a cluster that outlive agents: units run, records lie on disk,
// networks exist. Agents come, act on it and are killed.
type world struct {
	t      *testing.T
	client *fake.Clientset
	layout paths.Layout

	mu       sync.Mutex
	units    map[string]*fakeUnit
	slices   map[string]bool
	networks map[string]netns.PodAddress
	volumes  map[string]bool
	boxes    map[string]bool
	streams  map[string]bool // pods that have log streams
	objects  map[string]kruntime.Object
	events   []string
	starts   []string // every process ever started, in order
	doubled  []string // attempts started beside a living one
	deaf     map[string]bool
	results  map[string]probes.Results
	probed   []probes.Target // what is probed, in order
	images   map[string]error
	policies map[string]corev1.PullPolicy // of images, as last asked for
	pulls    int
	hidden   int               // how often systemd fails to list units
	gets     int               // how often systemd was asked about one unit
	pruned   int               // images that are gone between their pull and the start
	held     int               // starts under way
	behave   func(u *fakeUnit) // what a new process does; nil: it runs
	// exec is what commands in containers do; nil: they succeed. signals are those that were sent.
	exec    func(context.Context, systemd.ExecRequest) (int, error)
	signals []string
	render  func() error // what an update of volumes does; nil: nothing
	// lend and giveBack are what others say whose volumes pods have; nil: nothing.
	lend     func(context.Context) error
	giveBack func() error
	ips      int
	// allocatable is the node's; nil counts nothing.
	allocatable corev1.ResourceList
	facts       func(*Deps) // what else the agent is told; may be nil
	offers      map[types.UID][]endpoints.Endpoint
	reading     bool // slices are not known yet
	forbidden   bool // slices are not to be seen
	// silent keeps starts from being told of; slow is what a network, and then an object, takes.
	silent bool
	slow   time.Duration
	// manifests are those of static pods; changedManifests tells the agent of the moment.
	manifests        []*corev1.Pod
	changedManifests func(staticpods.Set)
}

type fakeUnit struct {
	systemd.Unit
	running bool
	started time.Time
}

func newWorld(t *testing.T) *world {
	dir := t.TempDir()
	w := &world{
		t: t, layout: paths.Layout{Run: dir + "/run", Lib: dir + "/lib", Log: dir + "/log"},
		units: map[string]*fakeUnit{}, slices: map[string]bool{}, networks: map[string]netns.PodAddress{}, volumes: map[string]bool{},
		boxes: map[string]bool{}, streams: map[string]bool{}, objects: map[string]kruntime.Object{}, deaf: map[string]bool{}, results: map[string]probes.Results{},
		images: map[string]error{}, policies: map[string]corev1.PullPolicy{}, offers: map[types.UID][]endpoints.Endpoint{},
	}
	w.client = testapi.NewClientset(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes", UID: "cluster-1"}})
	w.gracefulDelete()
	return w
}

// gracefulDelete makes the fake API server keep a deleted pod for its grace period, as the
// real one does for pods with a node.
func (w *world) gracefulDelete() {
	w.client.PrependReactor("delete", "pods", func(action clienttesting.Action) (bool, kruntime.Object, error) {
		del := action.(clienttesting.DeleteActionImpl)
		grace := int64(30)
		if g := del.DeleteOptions.GracePeriodSeconds; g != nil {
			grace = *g
		}
		pods := schema.GroupVersionResource{Version: "v1", Resource: "pods"}
		obj, err := w.client.Tracker().Get(pods, del.Namespace, del.Name)
		if err != nil {
			return true, nil, err
		}
		pod := obj.(*corev1.Pod).DeepCopy()
		if p := del.DeleteOptions.Preconditions; p != nil && p.UID != nil && *p.UID != pod.UID {
			return true, nil, apierrors.NewConflict(pods.GroupResource(), del.Name, fmt.Errorf("UID"))
		}
		if grace == 0 {
			return true, nil, w.client.Tracker().Delete(pods, del.Namespace, del.Name)
		}
		now := metav1.Now()
		pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &now, &grace
		return true, nil, w.client.Tracker().Update(pods, pod, del.Namespace)
	})
}

// agent is one life of the agent.
type agent struct {
	w        *world
	provider *Provider
	cancel   context.CancelFunc
	done     chan struct{}
	mu       sync.Mutex
	dead     bool
	dieAt    string // step to be killed at
	dieAfter int    // so many steps it lives; 0 for ever
	steps    []string
	events   chan systemd.Event
	onProbe  func(string)
	onObject func(string)
	onOffer  func(types.UID)
}

// boot starts an agent.
func (w *world) boot(dieAt string) *agent {
	a := &agent{w: w, done: make(chan struct{}), dieAt: dieAt, events: make(chan systemd.Event, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	deps := Deps{
		NodeName: "n1", Client: w.client, Layout: w.layout, Runtime: fakeRuntime{a}, Executor: fakeRuntime{a}, Network: fakeNetwork{a},
		Images: fakeImages{a}, Volumes: fakeVolumes{a}, Objects: fakeObjects{a}, Probes: fakeProbes{a}, Logs: fakeLogs{a}, Sandbox: fakeSandbox{a},
		Recorder: fakeRecorder{a}, Log: slog.New(slog.DiscardHandler),
		DNS:     DNSConfig{ClusterDNS: []string{"10.96.0.10"}, ClusterDomain: "cluster.local"},
		Hold:    HoldOptions{Endpoints: fakeEndpoints{a}, Settle: time.Second, Percent: 50},
		Static:  w.readManifests,
		HostIPs: func() []string { return []string{"192.0.2.1"} }, StepHook: a.step,
		Node: NodeFacts{
			Seccomp:     seccomp.HostOf("amd64", "6.1"),
			Allocatable: func() corev1.ResourceList { return w.allocatable },
			Self:        func() *corev1.Node { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "node-1"}} },
		},
	}
	if w.facts != nil {
		w.facts(&deps)
	}
	p, err := New(deps)
	if err != nil {
		w.t.Fatal(err)
	}
	a.provider = p
	w.mu.Lock()
	w.t.Cleanup(a.stop)
	w.mu.Unlock()
	go func() {
		defer close(a.done)
		_ = p.Run(ctx)
	}()
	return a
}

func (a *agent) stop() {
	a.cancel()
	<-a.done
}

// step kills the agent at its chosen step: from then on nothing of it acts any more.
func (a *agent) step(name string) {
	a.mu.Lock()
	a.steps = append(a.steps, name)
	if (name == a.dieAt || a.dieAfter > 0 && len(a.steps) >= a.dieAfter) && !a.dead {
		a.dead = true
		a.cancel()
	}
	dead := a.dead
	a.mu.Unlock()
	if dead {
		runtime.Goexit()
	}
}

// act is called by every fake: a dead agent does nothing.
func (a *agent) act() {
	a.mu.Lock()
	dead := a.dead
	a.mu.Unlock()
	if dead {
		runtime.Goexit()
	}
}

type fakeRuntime struct{ a *agent }

func (f fakeRuntime) EnsureSlice(_ context.Context, s systemd.Slice) error {
	f.a.act()
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	f.a.w.slices[s.Name] = true
	return nil
}

func (f fakeRuntime) RemoveSlice(_ context.Context, name string) error {
	f.a.act()
	w := f.a.w
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.slices, name)
	for _, u := range w.units {
		if u.Slice == name && u.running {
			w.end(u, 137, 9)
		}
	}
	return nil
}

func (f fakeRuntime) Start(_ context.Context, unit systemd.Unit) (systemd.Started, error) {
	f.a.act()
	w := f.a.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == 0 && unit.Identity.Container != podplan.PauseName {
		w.t.Errorf("unit %s is started while its image may be removed", unit.Name)
	}
	if old := w.units[unit.Name]; old != nil {
		return systemd.Started{}, fmt.Errorf("unit %s exists", unit.Name)
	}
	for _, other := range w.units {
		if other.running && other.Identity.PodUID == unit.Identity.PodUID && other.Identity.Container == unit.Identity.Container {
			w.doubled = append(w.doubled, unit.Name)
		}
	}
	var spec launchspec.Spec
	data, err := os.ReadFile(unit.LaunchSpec)
	if err != nil {
		return systemd.Started{}, err
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return systemd.Started{}, err
	}
	u := &fakeUnit{Unit: unit, running: true, started: time.Now()}
	w.units[unit.Name] = u
	w.starts = append(w.starts, fmt.Sprintf("%s/%d", unit.Identity.Container, unit.Identity.Attempt))
	if w.behave != nil {
		w.behave(u)
	}
	if !w.silent {
		f.a.notify(unit.Name)
	}
	return systemd.Started{MainPID: 1, StartedAt: u.started}, nil
}

// notify tells of a change of a unit; the world's lock is held.
func (a *agent) notify(unit string) {
	event := systemd.Event{Unit: unit}
	if u := a.w.units[unit]; u != nil {
		event.PodUID = u.Identity.PodUID
	}
	select {
	case a.events <- event:
	default:
	}
}

// end lets a process end; the lock is held.
func (w *world) end(u *fakeUnit, code, signal int) {
	u.running = false
	exit := launchspec.Exit{
		PodUID: u.Identity.PodUID, Container: u.Identity.Container, Attempt: u.Identity.Attempt, ExitCode: code, Signal: signal,
		StartedAt: u.started.UTC().Format(time.RFC3339Nano), FinishedAt: time.Now().UTC().Format(time.RFC3339Nano),
	}
	data, _ := json.Marshal(exit)
	_ = os.WriteFile(u.ExitRecord, data, 0o600)
	if u.Identity.Container != podplan.PauseName {
		return
	}
	for _, other := range w.units { // the kernel ends a PID namespace with its first process
		if other.running && other.Identity.PodUID == u.Identity.PodUID {
			w.end(other, 137, 9)
		}
	}
}

// exit ends the newest process of a container.
func (w *world) exit(a *agent, container string, code int) {
	w.mu.Lock()
	for _, u := range w.units {
		if u.Identity.Container == container && u.running {
			w.end(u, code, 0)
			if a != nil {
				a.notify(u.Name)
			}
		}
	}
	w.mu.Unlock()
}

func (f fakeRuntime) Signal(_ context.Context, unit string, s syscall.Signal, _ bool) error {
	f.a.act()
	w := f.a.w
	w.mu.Lock()
	defer w.mu.Unlock()
	u := w.units[unit]
	if u == nil || !u.running {
		return nil
	}
	w.signals = append(w.signals, fmt.Sprintf("%s/%d %s", u.Identity.Container, u.Identity.Attempt, unix.SignalName(s)))
	if s == syscall.SIGKILL || !w.deaf[u.Identity.Container] {
		w.end(u, 128+int(s), int(s))
		f.a.notify(unit)
	}
	return nil
}

func (f fakeRuntime) Remove(_ context.Context, unit string) error {
	f.a.act()
	w := f.a.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if u := w.units[unit]; u != nil && u.running {
		w.end(u, 137, 9)
	}
	delete(w.units, unit)
	return nil
}

func (f fakeRuntime) List(context.Context) ([]systemd.UnitState, error) {
	f.a.act()
	w := f.a.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hidden--; w.hidden >= 0 {
		return nil, errors.New("too many questions")
	}
	var list []systemd.UnitState
	for name := range w.units {
		s, _ := w.state(name)
		list = append(list, s)
	}
	return list, nil
}

func (w *world) state(name string) (systemd.UnitState, bool) {
	u := w.units[name]
	if u == nil {
		return systemd.UnitState{}, false
	}
	s := systemd.UnitState{Name: name, Identity: u.Identity, Slice: u.Slice, ActiveState: "failed", StartedAt: u.started}
	if u.running {
		s.ActiveState, s.MainPID = "active", 1
	}
	return s, true
}

func (f fakeRuntime) Get(_ context.Context, name string) (systemd.UnitState, bool, error) {
	f.a.act()
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	f.a.w.gets++
	s, ok := f.a.w.state(name)
	return s, ok, nil
}

func (f fakeRuntime) ListSlices(context.Context) ([]string, error) { return nil, nil }

// SetResources notes changes of the CPU quota alone among the signals.
func (f fakeRuntime) SetResources(_ context.Context, name string, r systemd.Resources) error {
	quota := r.CPUQuota
	if r.CPUQuota = nil; quota == nil || r != (systemd.Resources{}) {
		return nil
	}
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	f.a.w.signals = append(f.a.w.signals, fmt.Sprintf("%s quota %v", strings.SplitN(name, "-", 2)[0], *quota))
	return nil
}

func (f fakeRuntime) Events() <-chan systemd.Event { return f.a.events }
func (f fakeRuntime) Exec(ctx context.Context, r systemd.ExecRequest) (exitCode int, err error) {
	f.a.act()
	if f.a.w.exec == nil {
		return 0, nil
	}
	return f.a.w.exec(ctx, r)
}

type fakeNetwork struct{ a *agent }

func (f fakeNetwork) Ready() error { return nil }

func (f fakeNetwork) Setup(_ context.Context, pod netns.PodNetwork) (netns.PodAddress, error) {
	f.a.act()
	w := f.a.w
	time.Sleep(w.slow)
	w.mu.Lock()
	defer w.mu.Unlock()
	if old, ok := w.networks[pod.PodUID]; ok {
		return old, nil
	}
	w.ips++
	w.networks[pod.PodUID] = netns.PodAddress{Path: "/ns/" + pod.PodUID, IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(w.ips)})}}
	return w.networks[pod.PodUID], nil
}

func (f fakeNetwork) Teardown(_ context.Context, uid string) error {
	f.a.act()
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	delete(f.a.w.networks, uid)
	return nil
}

func (f fakeNetwork) List(context.Context) (map[string]netns.PodAddress, error) {
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	out := map[string]netns.PodAddress{}
	for k, v := range f.a.w.networks {
		out[k] = v
	}
	return out, nil
}

func (f fakeNetwork) Dial(context.Context, string, string, string) (net.Conn, error) {
	return nil, fmt.Errorf("not here")
}

type fakeImages struct{ a *agent }

func (f fakeImages) Ensure(_ context.Context, req images.PullRequest) (images.Image, error) {
	f.a.act()
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	f.a.w.policies[req.Ref] = req.Policy
	if err := f.a.w.images[req.Ref]; err != nil {
		return images.Image{}, err
	}
	f.a.w.pulls++
	return images.Image{Ref: req.Ref, Digest: req.Ref + "@sha256:1", Layers: []string{"/l"}, Config: images.Config{Cmd: []string{"/bin/app"}}}, nil
}

func (f fakeImages) Get(_ context.Context, digest string) (images.Image, bool, error) {
	f.a.act()
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	if f.a.w.pruned > 0 {
		f.a.w.pruned--
		return images.Image{}, false, nil
	}
	return images.Image{Digest: digest}, true, nil
}

func (f fakeImages) HoldStart() (func(), error) {
	f.a.act()
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	f.a.w.held++
	return func() {
		f.a.w.mu.Lock()
		defer f.a.w.mu.Unlock()
		f.a.w.held--
	}, nil
}
func (fakeImages) List(context.Context) ([]corev1.ContainerImage, error) { return nil, nil }

type fakeVolumes struct{ a *agent }

func (f fakeVolumes) Prepare(ctx context.Context, pod *corev1.Pod, _ volumes.PodInfo) (map[string]volumes.Mounted, error) {
	f.a.act()
	if f.a.w.lend != nil {
		if err := f.a.w.lend(ctx); err != nil {
			return nil, err
		}
	}
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	f.a.w.volumes[string(pod.UID)] = true
	out := map[string]volumes.Mounted{}
	one := *pod
	for _, v := range pod.Spec.Volumes {
		if one.Spec.Volumes = []corev1.Volume{v}; v.Image != nil || volumes.Lacks(&one, nil) {
			out[v.Name] = volumes.Mounted{Path: "/vol/" + v.Name}
		}
	}
	return out, nil
}

func (f fakeVolumes) Update(context.Context, *corev1.Pod, volumes.PodInfo) error {
	if f.a.w.render == nil {
		return nil
	}
	return f.a.w.render()
}

func (f fakeVolumes) Remove(_ context.Context, uid string) error {
	f.a.act()
	if f.a.w.giveBack != nil {
		if err := f.a.w.giveBack(); err != nil {
			return fmt.Errorf("remove volumes of pod %s: %w", uid, err)
		}
	}
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	delete(f.a.w.volumes, uid)
	return nil
}

func (f fakeVolumes) List(context.Context) ([]string, error) {
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	var out []string
	for uid := range f.a.w.volumes {
		out = append(out, uid)
	}
	return out, nil
}

type fakeObjects struct{ a *agent }

func (fakeObjects) Register(*corev1.Pod) {}
func (fakeObjects) Unregister(string)    {}

func (f fakeObjects) ConfigMap(_ context.Context, ns, name string) (*corev1.ConfigMap, error) {
	time.Sleep(f.a.w.slow)
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	if cm, ok := f.a.w.objects["cm/"+ns+"/"+name].(*corev1.ConfigMap); ok {
		return cm, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
}

func (f fakeObjects) Secret(_ context.Context, ns, name string) (*corev1.Secret, error) {
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	if s, ok := f.a.w.objects["secret/"+ns+"/"+name].(*corev1.Secret); ok {
		return s, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
}

func (fakeObjects) Token(context.Context, *corev1.Pod, string, int64) (string, error) {
	return "t", nil
}
func (f fakeObjects) OnChange(fn func(string)) { f.a.onObject = fn }

type fakeProbes struct{ a *agent }

func (f fakeProbes) Sync(target probes.Target) {
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	f.a.w.probed = append(f.a.w.probed, target)
}
func (fakeProbes) Stop(string, string)           {}
func (fakeProbes) StopLivenessAndStartup(string) {}

func (f fakeProbes) Results(_, container string, attempt int) (probes.Results, bool) {
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	r, ok := f.a.w.results[fmt.Sprintf("%s/%d", container, attempt)]
	return r, ok
}
func (f fakeProbes) OnChange(fn func(string))                          { f.a.onProbe = fn }
func (fakeProbes) OnEvent(func(probes.Target, string, string, string)) {}

type fakeEndpoints struct{ a *agent }

func (f fakeEndpoints) Of(uid types.UID) ([]endpoints.Endpoint, endpoints.State) {
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	if f.a.w.forbidden {
		return nil, endpoints.Forbidden
	}
	if f.a.w.reading {
		return nil, endpoints.Unknown
	}
	return f.a.w.offers[uid], endpoints.Known
}
func (f fakeEndpoints) OnChange(fn func(types.UID)) { f.a.onOffer = fn }
func (fakeEndpoints) Track(*corev1.Pod)             {}
func (fakeEndpoints) Forget(types.UID)              {}

// offer sets what Services tell of a pod.
func (w *world) offer(a *agent, uid types.UID, list ...endpoints.Endpoint) {
	w.mu.Lock()
	w.offers[uid] = list
	w.mu.Unlock()
	a.onOffer(uid)
}

type fakeLogs struct{ a *agent }

func (f fakeLogs) Create(_ context.Context, s LogStream) (LogPipes, error) {
	f.a.act()
	if err := os.MkdirAll(filepath.Dir(s.Path), 0o755); err != nil {
		return LogPipes{}, err
	}
	f.a.w.mu.Lock()
	f.a.w.streams[s.PodUID] = true
	f.a.w.mu.Unlock()
	return LogPipes{Stdout: "/fifo/out", Stderr: "/fifo/err"}, os.WriteFile(s.Path, nil, 0o600)
}
func (fakeLogs) WaitClosed(context.Context, string, string, int) error { return nil }
func (f fakeLogs) DiscardAll(uid string) error {
	f.a.act()
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	delete(f.a.w.streams, uid)
	return nil
}
func (fakeLogs) Discard(string, string, int) error                                { return nil }
func (fakeLogs) Tail(string, int, int) (string, error)                            { return "the end of the log", nil }
func (fakeLogs) Attach(context.Context, string, string, int, AttachStreams) error { return nil }

type fakeSandbox struct{ a *agent }

func (f fakeSandbox) Ensure(_ context.Context, uid string, o sandbox.Options) (sandbox.Paths, error) {
	f.a.act()
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	_, connected := f.a.w.networks[uid]
	early := connected && !f.a.w.boxes[uid]
	f.a.w.boxes[uid] = true
	made := sandbox.Paths{IPC: "/ns/ipc", Shm: "/shm"}
	if o.Users {
		if early {
			return made, errors.New("the network namespace was made before the user namespace that it belongs to")
		}
		made.Users = &sandbox.Users{Path: "/ns/user", First: 1 << 30}
	}
	return made, nil
}

func (f fakeSandbox) Remove(_ context.Context, uid string) error {
	f.a.act()
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	delete(f.a.w.boxes, uid)
	return nil
}

type fakeRecorder struct{ a *agent }

func (f fakeRecorder) Event(_ kruntime.Object, kind, reason, message string) {
	f.a.w.mu.Lock()
	defer f.a.w.mu.Unlock()
	f.a.w.events = append(f.a.w.events, kind+" "+reason+" "+message)
}

func (f fakeRecorder) Eventf(o kruntime.Object, kind, reason, format string, args ...any) {
	f.Event(o, kind, reason, fmt.Sprintf(format, args...))
}

func (f fakeRecorder) AnnotatedEventf(o kruntime.Object, _ map[string]string, kind, reason, format string, args ...any) {
	f.Event(o, kind, reason, fmt.Sprintf(format, args...))
}

// create puts a pod of this node into the API. The fake API server loses what happens
// between a list and its watch, so the agent is let settle first.
func (w *world) create(name string, change func(*corev1.Pod)) *corev1.Pod {
	w.t.Helper()
	synctest.Wait()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name), Generation: 1},
		Spec: corev1.PodSpec{
			NodeName: "n1", RestartPolicy: corev1.RestartPolicyAlways,
			Containers: []corev1.Container{{Name: "app", Image: "img"}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
	if change != nil {
		change(pod)
	}
	if _, err := w.client.CoreV1().Pods("ns").Create(context.Background(), pod, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
	return pod
}

func (w *world) get(name string) (*corev1.Pod, bool) {
	pod, err := w.client.CoreV1().Pods("ns").Get(context.Background(), name, metav1.GetOptions{})
	return pod, err == nil
}

func (w *world) delete(name string, grace int64) {
	w.t.Helper()
	synctest.Wait()
	err := w.client.CoreV1().Pods("ns").Delete(context.Background(), name, metav1.DeleteOptions{GracePeriodSeconds: &grace})
	if err != nil {
		w.t.Fatal(err)
	}
}

// until waits for a condition, for an hour of the bubble's time at most.
func (w *world) until(what string, condition func() bool) {
	w.t.Helper()
	for range 36000 {
		synctest.Wait()
		if condition() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.t.Fatalf("never happened: %s\nstarts %v\nevents:\n%s", what, w.starts, strings.Join(w.events, "\n"))
}

func (w *world) podIs(name string, phase corev1.PodPhase) func() bool {
	return func() bool {
		pod, ok := w.get(name)
		return ok && pod.Status.Phase == phase
	}
}

// empty says what is left on the machine.
func (w *world) left() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var left []string
	for name := range w.units {
		left = append(left, name)
	}
	for name := range w.slices {
		if strings.Contains(name, "pod") && strings.Contains(name, "uid") {
			left = append(left, name)
		}
	}
	for uid := range w.networks {
		left = append(left, "network "+uid)
	}
	for uid := range w.volumes {
		left = append(left, "volumes "+uid)
	}
	for uid := range w.boxes {
		left = append(left, "sandbox "+uid)
	}
	for uid := range w.streams {
		left = append(left, "log streams "+uid)
	}
	for _, dir := range []string{w.layout.Run + "/pods", w.layout.Lib + "/pods", w.layout.Log, filepath.Dir(w.layout.Log) + "/containers"} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			left = append(left, filepath.Join(dir, e.Name()))
		}
	}
	return left
}

// reboot takes away what a reboot takes away.
func (w *world) reboot() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.units, w.slices = map[string]*fakeUnit{}, map[string]bool{}
	w.networks, w.boxes = map[string]netns.PodAddress{}, map[string]bool{}
	if err := os.RemoveAll(w.layout.Run); err != nil {
		w.t.Fatal(err)
	}
}
