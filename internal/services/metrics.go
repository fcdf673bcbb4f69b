package services

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// stats are the Proxy's figures.
type stats struct {
	full, change prometheus.Observer
	all          *prometheus.HistogramVec
}

func newStats() *stats {
	all := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "vk_metal_services_sync_duration_seconds", Help: "How long it takes to compute and program Services: all of them, or what changed.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9),
	}, []string{"kind"})
	return &stats{full: all.WithLabelValues("full"), change: all.WithLabelValues("change"), all: all}
}

// timed notes how long a step took that began at start.
func (s *stats) timed(start time.Time, whole bool) {
	observer := s.change
	if whole {
		observer = s.full
	}
	observer.Observe(time.Since(start).Seconds())
}

// Collector gives the Proxy's metrics.
func (p *Proxy) Collector() prometheus.Collector { return p.stats.all }
