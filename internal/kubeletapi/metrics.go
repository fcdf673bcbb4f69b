package kubeletapi

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
	_ "k8s.io/component-base/metrics/prometheus/restclient" // API requests in /metrics
	_ "k8s.io/component-base/metrics/prometheus/version"    // the build in /metrics
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// scrapeBudget bounds how long the figures of one scrape are collected.
const scrapeBudget = 20 * time.Second

// summary serves /stats/summary; only_cpu_and_memory in the query makes it short.
func (s *Server) summary(w http.ResponseWriter, r *http.Request) {
	short := queryBool(r.URL.Query(), "only_cpu_and_memory")
	if r.Method == http.MethodPost {
		var body struct {
			Short bool `json:"only_cpu_and_memory"`
		}
		_ = json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&body)
		short = short || body.Short
	}
	if s.o.Stats == nil {
		http.Error(w, "statistics are not available", http.StatusServiceUnavailable)
		return
	}
	summary, err := s.o.Stats.Summary(r.Context(), short)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, summary)
}

// ownMetrics are the agent's: process, Go runtime, API requests; and figures of volumes, where a
// kubelet has them.
func (s *Server) ownMetrics() http.Handler {
	gatherers := prometheus.Gatherers{legacyregistry.DefaultGatherer}
	if s.o.Metrics != nil {
		gatherers = append(gatherers, s.o.Metrics)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(s.asked.collectors()...)
	if s.o.Stats != nil {
		registry.MustRegister(volumeCollector{s.o.Stats})
	}
	gatherers = append(gatherers, registry)
	return promhttp.InstrumentMetricHandler(prometheus.DefaultRegisterer, exposition(gatherers))
}

// gathered serves what another part has counted; nothing without one.
func gathered(g prometheus.Gatherer) http.Handler {
	if g == nil {
		g = prometheus.NewRegistry()
	}
	return exposition(g)
}

// probeMetrics are the results of probes, and since when they are counted.
func (s *Server) probeMetrics() http.Handler {
	started := metrics.NewKubeRegistry()
	if err := metrics.RegisterProcessStartTime(started.Register); err != nil {
		s.o.Log.Warn("cannot tell when the agent was started", "err", err)
	}
	gatherers := prometheus.Gatherers{started}
	if s.o.Probes != nil {
		gatherers = append(gatherers, s.o.Probes)
	}
	return exposition(gatherers)
}

// resourceMetrics are what metrics-server reads for `kubectl top` and autoscaling.
func (s *Server) resourceMetrics() http.Handler {
	registry := prometheus.NewRegistry()
	if s.o.Stats != nil {
		registry.MustRegister(resourceCollector{s.o.Stats})
	}
	return exposition(registry)
}

func exposition(g prometheus.Gatherer) http.Handler {
	return promhttp.HandlerFor(g, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Names, help and labels are kubelet 1.35's (pkg/kubelet/metrics/collectors/resource_metrics.go).
var (
	nodeCPU        = desc("node_cpu_usage_seconds_total", "[STABLE] Cumulative cpu time consumed by the node in core-seconds")
	nodeMemory     = desc("node_memory_working_set_bytes", "[STABLE] Current working set of the node in bytes")
	podCPU         = desc("pod_cpu_usage_seconds_total", "[STABLE] Cumulative cpu time consumed by the pod in core-seconds", "pod", "namespace")
	podMemory      = desc("pod_memory_working_set_bytes", "[STABLE] Current working set of the pod in bytes", "pod", "namespace")
	containerCPU   = desc("container_cpu_usage_seconds_total", "[STABLE] Cumulative cpu time consumed by the container in core-seconds", "container", "pod", "namespace")
	containerMem   = desc("container_memory_working_set_bytes", "[STABLE] Current working set of the container in bytes", "container", "pod", "namespace")
	nodeSwap       = desc("node_swap_usage_bytes", "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems")
	podSwap        = desc("pod_swap_usage_bytes", "[ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems", "pod", "namespace")
	containerSwap  = desc("container_swap_usage_bytes", "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems", "container", "pod", "namespace")
	containerStart = desc("container_start_time_seconds", "[STABLE] Start time of the container since unix epoch in seconds", "container", "pod", "namespace")
	scrapeError    = desc("scrape_error", "[ALPHA] 1 if there was an error while getting container metrics, 0 otherwise")
	resourceError  = desc("resource_scrape_error", "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise")
)

// resourceCollector makes the resource metrics of a Summary at each scrape.
type resourceCollector struct{ stats Stats }

// Describe implements prometheus.Collector.
func (resourceCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		nodeCPU, nodeMemory, nodeSwap, podCPU, podMemory, podSwap, containerCPU, containerMem, containerSwap, containerStart, scrapeError, resourceError,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c resourceCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeBudget)
	defer cancel()
	summary, err := c.stats.Summary(ctx, true)
	failed := 0.0
	if err != nil {
		failed = 1
	}
	ch <- prometheus.MustNewConstMetric(scrapeError, prometheus.GaugeValue, failed)
	ch <- prometheus.MustNewConstMetric(resourceError, prometheus.GaugeValue, failed)
	if err != nil {
		return
	}
	usage(ch, nodeCPU, nodeMemory, summary.Node.CPU, summary.Node.Memory)
	swapped(ch, nodeSwap, summary.Node.Swap)
	for i := range summary.Pods {
		pod := &summary.Pods[i]
		usage(ch, podCPU, podMemory, pod.CPU, pod.Memory, pod.PodRef.Name, pod.PodRef.Namespace)
		swapped(ch, podSwap, pod.Swap, pod.PodRef.Name, pod.PodRef.Namespace)
		for _, container := range pod.Containers {
			labels := []string{container.Name, pod.PodRef.Name, pod.PodRef.Namespace}
			usage(ch, containerCPU, containerMem, container.CPU, container.Memory, labels...)
			swapped(ch, containerSwap, container.Swap, labels...)
			if !container.StartTime.IsZero() {
				ch <- prometheus.MustNewConstMetric(containerStart, prometheus.GaugeValue, float64(container.StartTime.UnixNano())/1e9, labels...)
			}
		}
	}
}

// usage sends CPU and working set, each with the time at which it was read.
func usage(ch chan<- prometheus.Metric, cpuDesc, memDesc *prometheus.Desc, cpu *statsv1alpha1.CPUStats, mem *statsv1alpha1.MemoryStats, labels ...string) {
	if cpu != nil && cpu.UsageCoreNanoSeconds != nil {
		ch <- prometheus.NewMetricWithTimestamp(cpu.Time.Time,
			prometheus.MustNewConstMetric(cpuDesc, prometheus.CounterValue, float64(*cpu.UsageCoreNanoSeconds)/1e9, labels...))
	}
	if mem != nil && mem.WorkingSetBytes != nil {
		ch <- prometheus.NewMetricWithTimestamp(mem.Time.Time,
			prometheus.MustNewConstMetric(memDesc, prometheus.GaugeValue, float64(*mem.WorkingSetBytes), labels...))
	}
}

// swapped sends what is swapped out.
func swapped(ch chan<- prometheus.Metric, d *prometheus.Desc, swap *statsv1alpha1.SwapStats, labels ...string) {
	if swap != nil && swap.SwapUsageBytes != nil {
		ch <- prometheus.NewMetricWithTimestamp(swap.Time.Time,
			prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(*swap.SwapUsageBytes), labels...))
	}
}
