package kubeletmetrics

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"

	"github.com/vk-metal/vk-metal/systemd"
)

func text(t *testing.T, collectors ...prometheus.Collector) string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collectors...)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, family := range families {
		if _, err := expfmt.MetricFamilyToText(&out, family); err != nil {
			t.Fatal(err)
		}
	}
	return out.String()
}

func check(t *testing.T, got string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("lacks %s", want)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
}

type fakeRuntime struct {
	systemd.Runtime
	err error
}

func (f fakeRuntime) EnsureSlice(context.Context, systemd.Slice) error              { return f.err }
func (f fakeRuntime) RemoveSlice(context.Context, string) error                     { return f.err }
func (f fakeRuntime) SetResources(context.Context, string, systemd.Resources) error { return f.err }
func (f fakeRuntime) Signal(context.Context, string, syscall.Signal, bool) error    { return f.err }
func (f fakeRuntime) Remove(context.Context, string) error                          { return f.err }
func (f fakeRuntime) List(context.Context) ([]systemd.UnitState, error)             { return nil, f.err }
func (f fakeRuntime) Get(context.Context, string) (systemd.UnitState, bool, error) {
	return systemd.UnitState{}, true, f.err
}

func (f fakeRuntime) Start(context.Context, systemd.Unit) (started systemd.Started, err error) {
	return systemd.Started{MainPID: 5}, f.err
}

// TestRuntime: each call is passed on with its answer, and counted.
func TestRuntime(t *testing.T) {
	o := NewOperations()
	ctx := t.Context()
	for _, want := range []error{nil, errors.New("no")} {
		r := o.Runtime(fakeRuntime{err: want})
		started, err := r.Start(ctx, systemd.Unit{})
		_, _, errGet := r.Get(ctx, "u")
		_, errList := r.List(ctx)
		for i, got := range []error{
			err, errGet, errList, r.EnsureSlice(ctx, systemd.Slice{}), r.RemoveSlice(ctx, "s"), r.SetResources(ctx, "u", systemd.Resources{}),
			r.Signal(ctx, "u", syscall.SIGTERM, false), r.Remove(ctx, "u"),
		} {
			if !errors.Is(got, want) {
				t.Errorf("call %d: %v, want %v", i, got, want)
			}
		}
		if started.MainPID != 5 {
			t.Errorf("started %+v", started)
		}
	}
	got := text(t, o.Collectors()...)
	for _, kind := range []string{"start_container", "stop_container", "remove_container", "list_containers", "container_status"} {
		check(t, got, `kubelet_runtime_operations_total{operation_type="`+kind+`"} 2`, `kubelet_runtime_operations_errors_total{operation_type="`+kind+`"} 1`,
			`kubelet_runtime_operations_duration_seconds_count{operation_type="`+kind+`"} 2`)
	}
	for _, method := range []string{"create", "update", "destroy"} {
		check(t, got, `kubelet_cgroup_manager_duration_seconds_count{operation_type="`+method+`"} 2`)
	}
}

func TestPods(t *testing.T) {
	running, exited := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}, corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}
	pods := []*corev1.Pod{
		{
			ObjectMeta: metav1.ObjectMeta{UID: "11111111-1111-4111-8111-111111111111"}, Spec: corev1.PodSpec{EphemeralContainers: make([]corev1.EphemeralContainer, 1)},
			Status: corev1.PodStatus{
				Phase: corev1.PodRunning, InitContainerStatuses: []corev1.ContainerStatus{{State: exited}},
				ContainerStatuses: []corev1.ContainerStatus{{State: running}, {State: running}},
			},
		},
		{Status: corev1.PodStatus{Phase: corev1.PodSucceeded, ContainerStatuses: []corev1.ContainerStatus{{State: exited}}}},
		{Status: corev1.PodStatus{Phase: corev1.PodPending}},
	}
	check(t, text(t, NewPods("metal-1", func() []*corev1.Pod { return pods })),
		`kubelet_node_name{node="metal-1"} 1`, "kubelet_running_pods 1", `kubelet_running_containers{container_state="running"} 2`,
		`kubelet_running_containers{container_state="exited"} 2`, `kubelet_desired_pods{static=""} 3`, `kubelet_desired_pods{static="true"} 0`,
		`kubelet_active_pods{static=""} 2`, "kubelet_mirror_pods 0", "kubelet_managed_ephemeral_containers 1")
}

func TestStarts(t *testing.T) {
	s := NewStarts()
	fake := record.NewFakeRecorder(10)
	r := s.Recorder(fake)
	event := func(path, reason, message string) {
		r.Event(&corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", FieldPath: path}, "Normal", reason, message)
		if got := <-fake.Events; got != "Normal "+reason+" "+message {
			t.Errorf("passed on %q", got)
		}
	}
	event("spec.containers{a}", "Started", "Container started")
	event("spec.initContainers{i}", "Started", "Container started")
	event("spec.ephemeralContainers{e}", "Started", "Container started")
	event("spec.containers{a}", "Failed", "Error: ErrImagePull")
	event("spec.containers{a}", "Failed", "Failed to pull image")
	event("spec.containers{a}", "Failed", "Error: exec: no such file")
	event("", "FailedCreatePodSandBox", "Failed to create pod sandbox: no")
	r.Event(&corev1.ObjectReference{APIVersion: "v1", Kind: "Node"}, "Normal", "Started", "a node")
	check(t, text(t, s.Collectors()...),
		`kubelet_started_containers_total{container_type="container"} 1`, `kubelet_started_containers_total{container_type="init_container"} 1`,
		`kubelet_started_containers_total{container_type="ephemeral_container"} 1`,
		`kubelet_started_containers_errors_total{code="ErrImagePull",container_type="container"} 1`,
		`kubelet_started_containers_errors_total{code="RunContainerError",container_type="container"} 1`, "kubelet_started_pods_errors_total 1")
}

func TestNode(t *testing.T) {
	n := NewNode()
	n.Evicted("memory.available")
	for size, took := range map[int64]time.Duration{1: time.Second, 10 << 20: 2 * time.Second, 200 << 30: 3 * time.Second} {
		n.Pulled(size, took)
	}
	var expires time.Time
	expiry := NewExpiry("client", func() time.Time { return expires })
	check(t, text(t, append(n.Collectors(), expiry)...),
		`kubelet_evictions{eviction_signal="memory.available"} 1`, `kubelet_image_pull_duration_seconds_sum{image_size_in_bytes="0-10MB"} 1`,
		`kubelet_image_pull_duration_seconds_sum{image_size_in_bytes="10MB-100MB"} 2`, `kubelet_image_pull_duration_seconds_sum{image_size_in_bytes="GT100GB"} 3`,
		"kubelet_certificate_manager_client_ttl_seconds +Inf")
	synctest.Test(t, func(t *testing.T) {
		expires = time.Now().Add(90 * time.Second)
		check(t, text(t, NewExpiry("server", func() time.Time { return expires })), "kubelet_certificate_manager_server_ttl_seconds 90")
		time.Sleep(100 * time.Second)
		check(t, text(t, NewExpiry("server", func() time.Time { return expires })), "kubelet_certificate_manager_server_ttl_seconds -10")
	})
}
