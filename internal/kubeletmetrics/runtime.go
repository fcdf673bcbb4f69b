package kubeletmetrics

import (
	"context"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vk-metal/vk-metal/systemd"
)

// Operations counts and times calls of systemd as a kubelet does those of its runtime.
type Operations struct {
	total, failed *prometheus.CounterVec
	took, cgroups *prometheus.HistogramVec
}

// NewOperations makes the counters; Collectors has to be registered by the caller.
func NewOperations() *Operations {
	kind := []string{"operation_type"}
	return &Operations{
		total:  counters("runtime_operations_total", "Cumulative number of runtime operations by operation type.", kind...),
		failed: counters("runtime_operations_errors_total", "Cumulative number of runtime operation errors by operation type.", kind...),
		took: histograms("runtime_operations_duration_seconds", "Duration in seconds of runtime operations. Broken down by operation type.",
			prometheus.ExponentialBuckets(.005, 2.5, 14), kind...),
		cgroups: histograms("cgroup_manager_duration_seconds", "Duration in seconds for cgroup manager operations. Broken down by method.",
			prometheus.DefBuckets, kind...),
	}
}

// Collectors are to be registered.
func (o *Operations) Collectors() []prometheus.Collector {
	return []prometheus.Collector{o.total, o.failed, o.took, o.cgroups}
}

func counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "kubelet", Name: name, Help: "[ALPHA] " + help}, labels)
}

func histograms(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "kubelet", Name: name, Help: "[ALPHA] " + help, Buckets: buckets}, labels)
}

func (o *Operations) count(kind string, begin time.Time, err error) {
	o.total.WithLabelValues(kind).Inc()
	o.took.WithLabelValues(kind).Observe(time.Since(begin).Seconds())
	if err != nil {
		o.failed.WithLabelValues(kind).Inc()
	}
}

func (o *Operations) cgroup(method string, begin time.Time) {
	o.cgroups.WithLabelValues(method).Observe(time.Since(begin).Seconds())
}

// Runtime counts the calls of r.
func (o *Operations) Runtime(r systemd.Runtime) systemd.Runtime { return runtime{r, o} }

type runtime struct {
	systemd.Runtime
	o *Operations
}

// EnsureSlice implements systemd.Runtime.
func (r runtime) EnsureSlice(ctx context.Context, slice systemd.Slice) error {
	begin := time.Now()
	err := r.Runtime.EnsureSlice(ctx, slice)
	r.o.cgroup("create", begin)
	return err
}

// RemoveSlice implements systemd.Runtime.
func (r runtime) RemoveSlice(ctx context.Context, name string) error {
	begin := time.Now()
	err := r.Runtime.RemoveSlice(ctx, name)
	r.o.cgroup("destroy", begin)
	return err
}

// SetResources implements systemd.Runtime.
func (r runtime) SetResources(ctx context.Context, name string, resources systemd.Resources) error {
	begin := time.Now()
	err := r.Runtime.SetResources(ctx, name, resources)
	r.o.cgroup("update", begin)
	return err
}

// Start implements systemd.Runtime.
func (r runtime) Start(ctx context.Context, unit systemd.Unit) (systemd.Started, error) {
	begin := time.Now()
	started, err := r.Runtime.Start(ctx, unit)
	r.o.count("start_container", begin, err)
	return started, err
}

// Signal implements systemd.Runtime.
func (r runtime) Signal(ctx context.Context, unit string, signal syscall.Signal, all bool) error {
	begin := time.Now()
	err := r.Runtime.Signal(ctx, unit, signal, all)
	r.o.count("stop_container", begin, err)
	return err
}

// Remove implements systemd.Runtime.
func (r runtime) Remove(ctx context.Context, unit string) error {
	begin := time.Now()
	err := r.Runtime.Remove(ctx, unit)
	r.o.count("remove_container", begin, err)
	return err
}

// List implements systemd.Runtime.
func (r runtime) List(ctx context.Context) ([]systemd.UnitState, error) {
	begin := time.Now()
	list, err := r.Runtime.List(ctx)
	r.o.count("list_containers", begin, err)
	return list, err
}

// Get implements systemd.Runtime.
func (r runtime) Get(ctx context.Context, unit string) (systemd.UnitState, bool, error) {
	begin := time.Now()
	state, ok, err := r.Runtime.Get(ctx, unit)
	r.o.count("container_status", begin, err)
	return state, ok, err
}
