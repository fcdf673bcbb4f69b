package claims

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	drav1 "k8s.io/kubelet/pkg/apis/dra/v1"
	drav1beta1 "k8s.io/kubelet/pkg/apis/dra/v1beta1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/internal/testapi"
)

// driver is a plugin that notes what it is asked. A device's CDI name tells of driver, claim
// and request.
type driver struct {
	drav1.UnimplementedDRAPluginServer
	name string

	mu     sync.Mutex
	calls  []string
	answer func(*drav1.NodePrepareResourcesResponse) error // changes answers; may be nil
	refuse string                                          // what unpreparing fails with
}

func (d *driver) NodePrepareResources(_ context.Context, r *drav1.NodePrepareResourcesRequest) (*drav1.NodePrepareResourcesResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := &drav1.NodePrepareResourcesResponse{Claims: map[string]*drav1.NodePrepareResourceResponse{}}
	for _, c := range r.Claims {
		d.calls = append(d.calls, "prepare "+c.Name)
		result := &drav1.NodePrepareResourceResponse{}
		for _, request := range []string{"one", "two"} {
			result.Devices = append(result.Devices, &drav1.Device{
				PoolName: "pool", DeviceName: request, RequestNames: []string{request}, CdiDeviceIds: []string{d.name + "/" + c.Name + "=" + request},
			})
		}
		out.Claims[c.Uid] = result
	}
	if d.answer != nil {
		return out, d.answer(out)
	}
	return out, nil
}

func (d *driver) NodeUnprepareResources(_ context.Context, r *drav1.NodeUnprepareResourcesRequest) (*drav1.NodeUnprepareResourcesResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := &drav1.NodeUnprepareResourcesResponse{Claims: map[string]*drav1.NodeUnprepareResourceResponse{}}
	for _, c := range r.Claims {
		d.calls = append(d.calls, "unprepare "+c.Name)
		out.Claims[c.Uid] = &drav1.NodeUnprepareResourceResponse{Error: d.refuse}
	}
	return out, nil
}

// asked are the calls so far.
func (d *driver) asked() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.calls, ", ")
}

// serve has the driver listen until the test ends.
func (d *driver) serve(t *testing.T) (endpoint string) {
	t.Helper()
	endpoint = filepath.Join(t.TempDir(), "dra.sock")
	listener, err := net.Listen("unix", endpoint)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	drav1.RegisterDRAPluginServer(server, d)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); <-done })
	return endpoint
}

// node is a Manager with the drivers of its node, and an API.
type node struct {
	*Manager
	client *fake.Clientset
	layout paths.Layout
}

func newNode(t *testing.T, drivers []*driver, objects ...runtime.Object) *node {
	t.Helper()
	n := &node{client: testapi.NewClientset(objects...), layout: paths.Layout{Lib: t.TempDir()}}
	n.restart(t, drivers...)
	return n
}

func (n *node) restart(t *testing.T, drivers ...*driver) {
	t.Helper()
	var err error
	if n.Manager, err = New(Options{Layout: n.layout, NodeName: "n1", Client: n.client, Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	for _, d := range drivers {
		endpoint := d.serve(t)
		if err := n.Register(t.Context(), d.name, endpoint, []string{drav1.DRAPluginService}); err != nil {
			t.Fatal(err)
		}
		m := n.Manager
		t.Cleanup(func() { m.Deregister(d.name, endpoint) })
	}
}

// claimOf is an allocated claim, reserved for pods.
func claimOf(name string, drivers []string, pods ...string) *resourceapi.ResourceClaim {
	c := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name)}}
	c.Status.Allocation = &resourceapi.AllocationResult{}
	for _, d := range drivers {
		c.Status.Allocation.Devices.Results = append(c.Status.Allocation.Devices.Results, resourceapi.DeviceRequestAllocationResult{Driver: d, Request: "one"})
	}
	for _, p := range pods {
		c.Status.ReservedFor = append(c.Status.ReservedFor, resourceapi.ResourceClaimConsumerReference{Resource: "pods", Name: p, UID: types.UID(p)})
	}
	return c
}

// podWith names its claims a, b, …
func podWith(uid string, claims ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: uid, UID: types.UID(uid)}}
	for i, name := range claims {
		p.Spec.ResourceClaims = append(p.Spec.ResourceClaims, corev1.PodResourceClaim{Name: string(rune('a' + i)), ResourceClaimName: &name})
	}
	return p
}

func TestClaimsAreSharedAndGivenBackByTheLast(t *testing.T) {
	gpu, nic := &driver{name: "gpu"}, &driver{name: "nic"}
	n := newNode(t, []*driver{gpu, nic}, claimOf("both", []string{"gpu", "nic"}, "p1", "p2"), claimOf("own", []string{"gpu"}, "p1"))
	one, two := podWith("p1", "both", "own"), podWith("p2", "both")
	for _, pod := range []*corev1.Pod{one, one, two} {
		if err := n.Prepare(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		claims []corev1.ResourceClaim
		want   []string
	}{
		"none":           {nil, nil},
		"all of a claim": {[]corev1.ResourceClaim{{Name: "b"}}, []string{"gpu/own=one", "gpu/own=two"}},
		"one request":    {[]corev1.ResourceClaim{{Name: "a", Request: "two"}}, []string{"gpu/both=two", "nic/both=two"}},
		"of two":         {[]corev1.ResourceClaim{{Name: "b", Request: "one"}, {Name: "a", Request: "one"}}, []string{"gpu/own=one", "gpu/both=one", "nic/both=one"}},
	} {
		c := &corev1.Container{Name: "c", Resources: corev1.ResourceRequirements{Claims: tc.claims}}
		if got, err := n.Devices(one, c); err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v (%v), want %v", name, got, err, tc.want)
		}
	}
	if got := len(n.Pods()); got != 2 {
		t.Errorf("%d pods", got)
	}
	c := &corev1.Container{Name: "c", Resources: corev1.ResourceRequirements{Claims: []corev1.ResourceClaim{{Name: "a", Request: "one"}, {Name: "a", Request: "two"}}}}
	if got, want := told(n.Resources(one, c)), "both of ns: gpu/pool/one gpu/both=one, gpu/pool/two gpu/both=two, nic/pool/one nic/both=one, nic/pool/two nic/both=two; "; got != want {
		t.Errorf("resources %q, want %q", got, want)
	}
	if got := told(n.Resources(podWith("stranger", "both"), c)); got != "" {
		t.Errorf("a pod that the claim was not made ready for has %q", got)
	}
	for _, uid := range []string{"p1", "p1", "nobody"} {
		if err := n.Release(t.Context(), uid); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := nic.asked(), "prepare both"; got != want {
		t.Errorf("one driver was asked %q, want %q", got, want)
	}
	if err := n.Release(t.Context(), "p2"); err != nil {
		t.Fatal(err)
	}
	if got, want := gpu.asked(), "prepare both, prepare own, unprepare own, unprepare both"; got != want {
		t.Errorf("the other was asked %q, want %q", got, want)
	}
	if got := n.Pods(); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// told prints what monitoring agents are told.
func told(list []*podresourcesapi.DynamicResource) string {
	text := ""
	for _, r := range list {
		var parts []string
		for _, d := range r.ClaimResources {
			parts = append(parts, d.DriverName+"/"+d.PoolName+"/"+d.DeviceName+" "+d.CdiDevices[0].Name)
		}
		text += r.ClaimName + " of " + r.ClaimNamespace + ": " + strings.Join(parts, ", ") + "; "
	}
	return text
}

// TestExtendedResources: the claim that the scheduler made for extended resources.
func TestExtendedResources(t *testing.T) {
	n := newNode(t, []*driver{{name: "gpu"}}, claimOf("made", []string{"gpu"}, "p1"))
	pod := podWith("p1")
	pod.Status.ExtendedResourceClaimStatus = &corev1.PodExtendedResourceClaimStatus{
		ResourceClaimName: "made",
		RequestMappings:   []corev1.ContainerExtendedResourceRequest{{ContainerName: "c", ResourceName: "x.com/gpu", RequestName: "two"}},
	}
	if !Wants(pod) {
		t.Error("the pod has no claim")
	}
	if err := n.Prepare(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{"c": {"gpu/made=two"}, "other": nil} {
		if got, err := n.Devices(pod, &corev1.Container{Name: name}); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s has %v (%v), want %v", name, got, err, want)
		}
	}
}

// TestClaimsOutliveTheAgent: what was asked for is known to the next agent, which asks again.
func TestClaimsOutliveTheAgent(t *testing.T) {
	gpu := &driver{name: "gpu"}
	n := newNode(t, []*driver{gpu}, claimOf("c", []string{"gpu"}, "p1"))
	pod, container := podWith("p1", "c"), &corev1.Container{Resources: corev1.ResourceRequirements{Claims: []corev1.ResourceClaim{{Name: "a"}}}}
	if err := n.Prepare(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	n.restart(t)
	if got := n.Pods(); len(got) != 1 || got["p1"] != "ns" {
		t.Errorf("claims of %v", got)
	}
	if _, err := n.Devices(pod, container); err == nil {
		t.Error("devices are given out that a reboot may have taken")
	}
	if err := n.Release(t.Context(), "p1"); err == nil {
		t.Error("a claim is given back without its driver")
	}
	n.restart(t, gpu)
	if err := n.Prepare(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Devices(pod, container); err != nil {
		t.Error(err)
	}
	if err := n.Release(t.Context(), "p1"); err != nil {
		t.Fatal(err)
	}
	if got, want := gpu.asked(), "prepare c, prepare c, unprepare c"; got != want {
		t.Errorf("asked %q, want %q", got, want)
	}
}

func TestClaimsThatCannotBeHad(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*resourceapi.ResourceClaim)
		answer func(*drav1.NodePrepareResourcesResponse) error
		want   string
		held   bool // the driver was asked: it has to be asked to give back
	}{
		"of another pod": {change: func(c *resourceapi.ResourceClaim) { c.Status.ReservedFor[0].UID = "p9" }, want: "pod p1 (p1) is not allowed to use ResourceClaim c (uid-c)"},
		"not allocated":  {change: func(c *resourceapi.ResourceClaim) { c.Status.Allocation = nil }, want: "ResourceClaim c: not allocated"},
		"no driver":      {change: func(c *resourceapi.ResourceClaim) { c.Status.Allocation.Devices.Results[0].Driver = "away" }, want: "DRA driver away is not registered"},
		"no such claim":  {change: func(c *resourceapi.ResourceClaim) { c.Name = "other" }, want: "fetch ResourceClaim c"},
		"the driver fails": {
			answer: func(*drav1.NodePrepareResourcesResponse) error { return errors.New("out of order") }, want: "out of order", held: true,
		},
		"the driver fails for this one": {
			answer: func(r *drav1.NodePrepareResourcesResponse) error { r.Claims["uid-c"].Error = "broken"; return nil },
			want:   "NodePrepareResources failed for ResourceClaim c: broken", held: true,
		},
		"the driver forgets": {
			answer: func(r *drav1.NodePrepareResourcesResponse) error { clear(r.Claims); return nil }, want: "NodePrepareResources skipped ResourceClaim c", held: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := claimOf("c", []string{"gpu"}, "p1")
			if tc.change != nil {
				tc.change(c)
			}
			n := newNode(t, []*driver{{name: "gpu", answer: tc.answer}}, c)
			if err := n.Prepare(t.Context(), podWith("p1", "c")); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %s", err, tc.want)
			}
			if _, held := n.Pods()["p1"]; held != tc.held {
				t.Errorf("held %v", held)
			}
			if err := n.Release(t.Context(), "p1"); err != nil || len(n.Pods()) > 0 {
				t.Errorf("%v, left %v", err, n.Pods())
			}
		})
	}
}

// TestOldClaimOfTheSameName: a claim that was made again is not the one whose devices are here.
func TestOldClaimOfTheSameName(t *testing.T) {
	gpu := &driver{name: "gpu", refuse: "busy"}
	n := newNode(t, []*driver{gpu}, claimOf("c", []string{"gpu"}, "p1"))
	if err := n.Prepare(t.Context(), podWith("p1", "c")); err != nil {
		t.Fatal(err)
	}
	if err := n.Release(t.Context(), "p1"); err == nil || !strings.Contains(err.Error(), "NodeUnprepareResources failed for ResourceClaim c: busy") {
		t.Errorf("error %v", err)
	}
	again := claimOf("c", []string{"gpu"}, "p2")
	again.UID = "uid-again"
	if err := n.client.Tracker().Update(resourceapi.SchemeGroupVersion.WithResource("resourceclaims"), again, "ns"); err != nil {
		t.Fatal(err)
	}
	if err := n.Prepare(t.Context(), podWith("p2", "c")); err == nil || !strings.Contains(err.Error(), "different UID") {
		t.Errorf("error %v", err)
	}
	gpu.mu.Lock()
	gpu.refuse = ""
	gpu.mu.Unlock()
	if err := errors.Join(n.Release(t.Context(), "p1"), n.Prepare(t.Context(), podWith("p2", "c"))); err != nil {
		t.Error(err)
	}
}

// TestTwoPluginsOfADriver: while a driver is updated, the one that came last is asked.
func TestTwoPluginsOfADriver(t *testing.T) {
	before, after := &driver{name: "gpu"}, &driver{name: "gpu"}
	n := newNode(t, []*driver{before}, claimOf("c", []string{"gpu"}, "p1"), claimOf("d", []string{"gpu"}, "p1"))
	endpoint := after.serve(t)
	if err := n.Register(t.Context(), "gpu", endpoint, []string{drav1beta1.DRAPluginService, drav1.DRAPluginService}); err != nil {
		t.Fatal(err)
	}
	if err := n.Prepare(t.Context(), podWith("p1", "c")); err != nil {
		t.Fatal(err)
	}
	n.Deregister("gpu", endpoint)
	if err := n.Prepare(t.Context(), podWith("p1", "d")); err != nil {
		t.Fatal(err)
	}
	if before.asked() != "prepare d" || after.asked() != "prepare c" {
		t.Errorf("before %q, after %q", before.asked(), after.asked())
	}
	for versions, ok := range map[string]bool{drav1.DRAPluginService: true, drav1beta1.DRAPluginService: true, "v9.DRAPlugin": false} {
		if err := n.Validate("gpu", endpoint, []string{versions}); (err == nil) != ok {
			t.Errorf("%s: %v", versions, err)
		}
	}
}

// TestSlicesOfGoneDriversGo: those of drivers that are here stay.
func TestSlicesOfGoneDriversGo(t *testing.T) {
	client := testapi.NewClientset()
	for _, driver := range []string{"here", "gone"} {
		s := &resourceapi.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: driver}, Spec: resourceapi.ResourceSliceSpec{Driver: driver}}
		if err := client.Tracker().Add(s); err != nil {
			t.Fatal(err)
		}
	}
	layout := paths.Layout{Lib: t.TempDir()}
	synctest.Test(t, func(t *testing.T) {
		var deleted []string
		client.PrependReactor("delete-collection", "resourceslices", func(a clienttesting.Action) (bool, runtime.Object, error) {
			deleted = append(deleted, a.(clienttesting.DeleteCollectionAction).GetListRestrictions().Fields.String())
			return true, nil, nil
		})
		m, err := New(Options{Layout: layout, NodeName: "n1", Client: client, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Register(t.Context(), "here", "/nowhere", []string{drav1.DRAPluginService}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx, func() {}) }()
		time.Sleep(29 * time.Second)
		synctest.Wait()
		if len(deleted) > 0 {
			t.Errorf("deleted before its time: %v", deleted)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		m.Deregister("here", "/nowhere")
		if len(deleted) != 1 || !strings.Contains(deleted[0], resourceapi.ResourceSliceSelectorDriver+"=gone") || !strings.Contains(deleted[0], resourceapi.ResourceSliceSelectorNodeName+"=n1") {
			t.Errorf("deleted %v", deleted)
		}
	})
}
