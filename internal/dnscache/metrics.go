package dnscache

import "github.com/prometheus/client_golang/prometheus"

// stats are what the metrics say.
type stats struct {
	queries *prometheus.CounterVec
	took    prometheus.Histogram
	entries prometheus.GaugeFunc
}

func newStats(c *cache) *stats {
	s := &stats{
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vk_metal_dns_queries_total", Help: "Pods' DNS queries by where the answer came from: hit, miss, stale, failed, refused",
		}, []string{"result"}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "vk_metal_dns_upstream_seconds", Help: "How long the cluster's DNS took to answer", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 13),
		}),
		entries: prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "vk_metal_dns_entries", Help: "Answers in the cache"}, func() float64 {
			return float64(c.entries.Len())
		}),
	}
	for _, result := range []string{"hit", "miss", "stale", "failed", "refused"} {
		s.queries.WithLabelValues(result)
	}
	return s
}

func (s *stats) count(result string) { s.queries.WithLabelValues(result).Inc() }

// Describe implements prometheus.Collector.
func (c *Cache) Describe(ch chan<- *prometheus.Desc) {
	c.stats.queries.Describe(ch)
	c.stats.took.Describe(ch)
	c.stats.entries.Describe(ch)
}

// Collect implements prometheus.Collector.
func (c *Cache) Collect(ch chan<- prometheus.Metric) {
	c.stats.queries.Collect(ch)
	c.stats.took.Collect(ch)
	c.stats.entries.Collect(ch)
}
