package lan

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// counters are what the metrics say.
type counters struct {
	mu        sync.Mutex
	announced map[string]int // addresses by link
	answers   map[string]float64
	failures  map[string]float64
}

func (c *counters) set(announced map[string]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.announced = announced
}

// answered counts one answer, or that it could not be sent.
func (c *counters) answered(link string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answers == nil {
		c.answers, c.failures = map[string]float64{}, map[string]float64{}
	}
	if err != nil {
		c.failures[link]++
		return
	}
	c.answers[link]++
}

var (
	metricAnnounced = prometheus.NewDesc("vk_metal_lan_addresses", "Addresses of load balancers that this node announces", []string{"link"}, nil)
	metricAnswers   = prometheus.NewDesc("vk_metal_lan_answers_total", "ARP and neighbour solicitations answered", []string{"link"}, nil)
	metricFailures  = prometheus.NewDesc("vk_metal_lan_answer_failures_total", "Answers that could not be sent", []string{"link"}, nil)
)

// Describe implements prometheus.Collector.
func (a *Announcer) Describe(ch chan<- *prometheus.Desc) {
	ch <- metricAnnounced
	ch <- metricAnswers
	ch <- metricFailures
}

// Collect implements prometheus.Collector.
func (a *Announcer) Collect(ch chan<- prometheus.Metric) {
	c := &a.counts
	c.mu.Lock()
	defer c.mu.Unlock()
	for link, n := range c.announced {
		ch <- prometheus.MustNewConstMetric(metricAnnounced, prometheus.GaugeValue, float64(n), link)
	}
	for link, n := range c.answers {
		ch <- prometheus.MustNewConstMetric(metricAnswers, prometheus.CounterValue, n, link)
	}
	for link, n := range c.failures {
		ch <- prometheus.MustNewConstMetric(metricFailures, prometheus.CounterValue, n, link)
	}
}
