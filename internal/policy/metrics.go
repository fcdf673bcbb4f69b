package policy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// stats are the Controller's figures.
type stats struct {
	c        *Controller
	healed   prometheus.Counter
	cut      prometheus.Counter
	duration prometheus.Histogram
	denied   *prometheus.Desc
	size     *prometheus.Desc
}

func newStats(c *Controller) *stats {
	const prefix = "vk_metal_network_policy_"
	return &stats{
		c:        c,
		healed:   prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + "heals_total", Help: "How often the rules were put back after somebody else had changed them."}),
		cut:      prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + "flows_cut_total", Help: "Established flows that were ended because a change does not allow them any more."}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: prefix + "sync_duration_seconds", Help: "How long it takes to compute and program a change.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9)}),
		denied:   prometheus.NewDesc(prefix+"denied_packets_total", "Packets that no policy allows, since the rules were put in place.", []string{"direction"}, nil),
		size:     prometheus.NewDesc(prefix+"objects", "What is enforced on this node.", []string{"kind"}, nil),
	}
}

func (s *stats) timed(start time.Time) { s.duration.Observe(time.Since(start).Seconds()) }

// Collector gives the Controller's metrics.
func (c *Controller) Collector() prometheus.Collector { return c.stats }

// Describe implements prometheus.Collector.
func (s *stats) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.healed.Desc(), s.cut.Desc(), s.duration.Desc(), s.denied, s.size} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *stats) Collect(ch chan<- prometheus.Metric) {
	for _, m := range []prometheus.Metric{s.healed, s.cut, s.duration} {
		ch <- m
	}
	for _, d := range directions {
		ch <- prometheus.MustNewConstMetric(s.denied, prometheus.CounterValue, float64(s.c.table.denied(d)), d.String())
	}
	s.c.state.RLock()
	defer s.c.state.RUnlock()
	e := s.c.engine
	elements := 0
	for _, set := range e.content.sets {
		elements += len(set)
	}
	for kind, n := range map[string]int{
		"policies": len(e.policies), "pods": len(e.pods), "localPods": len(e.locals), "sets": len(e.content.sets), "elements": elements, "chains": len(e.content.chains),
	} {
		ch <- prometheus.MustNewConstMetric(s.size, prometheus.GaugeValue, float64(n), kind)
	}
}
