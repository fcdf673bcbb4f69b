package probes

import (
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

// counters are one worker's.
type counters struct {
	metrics          *probeMetrics
	total, durations prometheus.Labels
}

func (m *probeMetrics) of(t Target, kind Kind) counters {
	durations := prometheus.Labels{
		"probe_type": string(kind), "container": t.Container.Name, "pod": t.PodName, "namespace": t.Namespace,
	}
	total := prometheus.Labels{"pod_uid": t.PodUID}
	for key, value := range durations {
		total[key] = value
	}
	return counters{metrics: m, total: total, durations: durations}
}

func (c counters) observe(r result, took time.Duration) {
	t := c.total
	c.metrics.total.WithLabelValues(t["probe_type"], string(r), t["container"], t["pod"], t["namespace"], t["pod_uid"]).Inc()
	if r == success {
		c.metrics.duration.With(c.durations).Observe(took.Seconds())
	}
}

func (c counters) delete() {
	c.metrics.total.DeletePartialMatch(c.total)
	c.metrics.duration.Delete(c.durations)
}
