package probes

import (
	"maps"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// probeMetrics are the kubelet's, served at /metrics/probes.
type probeMetrics struct {
	total    *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

func newMetrics() *probeMetrics {
	return &probeMetrics{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Subsystem: "prober", Name: "probe_total",
			Help: "Cumulative number of a liveness, readiness or startup probe for a container by result.",
		}, []string{"probe_type", "result", "container", "pod", "namespace", "pod_uid"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Subsystem: "prober", Name: "probe_duration_seconds",
			Help: "Duration in seconds for a probe response.",
		}, []string{"probe_type", "container", "pod", "namespace"}),
	}
}

// counters are one worker's. A series is made by its first value.
type counters struct {
	metrics          *probeMetrics
	total, durations prometheus.Labels

	results map[result]prometheus.Counter
	took    prometheus.Observer
}

func (m *probeMetrics) of(t Target, kind Kind) *counters {
	durations := prometheus.Labels{
		"probe_type": string(kind), "container": t.Container.Name, "pod": t.PodName, "namespace": t.Namespace,
	}
	total := maps.Clone(durations)
	total["pod_uid"] = t.PodUID
	return &counters{metrics: m, total: total, durations: durations, results: map[result]prometheus.Counter{}}
}

// observe counts a run. Prober.mu guards it, so that delete comes last.
func (c *counters) observe(r result, took time.Duration) {
	if c.results[r] == nil {
		labels := maps.Clone(c.total)
		labels["result"] = string(r)
		c.results[r] = c.metrics.total.With(labels)
	}
	c.results[r].Inc()
	if r != success {
		return
	}
	if c.took == nil {
		c.took = c.metrics.duration.With(c.durations)
	}
	c.took.Observe(took.Seconds())
}

func (c *counters) delete() {
	c.metrics.total.DeletePartialMatch(c.total)
	c.metrics.duration.Delete(c.durations)
}
