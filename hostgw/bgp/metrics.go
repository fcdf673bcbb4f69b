package bgp

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	metricPeerUp    = prometheus.NewDesc("vk_metal_bgp_peer_up", "1 while the session is established", []string{"peer", "address"}, nil)
	metricAccepted  = prometheus.NewDesc("vk_metal_bgp_peer_received_prefixes", "Prefixes that the peer tells", []string{"peer", "address"}, nil)
	metricTold      = prometheus.NewDesc("vk_metal_bgp_peer_advertised_prefixes", "Prefixes that the peer is told", []string{"peer", "address"}, nil)
	metricInstalled = prometheus.NewDesc("vk_metal_bgp_routes_installed", "Received prefixes that are in the kernel", nil, nil)
	metricRefused   = prometheus.NewDesc("vk_metal_bgp_routes_refused", "Received prefixes that are not", nil, nil)
	metricFailed    = prometheus.NewDesc("vk_metal_bgp_failed", "1 while something wanted could not be done", nil, nil)
)

// Describe implements prometheus.Collector.
func (s *Speaker) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{metricPeerUp, metricAccepted, metricTold, metricInstalled, metricRefused, metricFailed} {
		ch <- d
	}
}

// Collect implements prometheus.Collector; it gives nothing while the Speaker does not run.
func (s *Speaker) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	st, err := s.Status(ctx)
	if err != nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, p := range st.Peers {
		up := 0.0
		if p.Up() {
			up = 1
		}
		address := p.Address.String()
		gauge(metricPeerUp, up, p.Name, address)
		gauge(metricAccepted, float64(p.Accepted), p.Name, address)
		gauge(metricTold, float64(p.Advertised), p.Name, address)
	}
	installed, failed := 0, 0.0
	for _, r := range st.Received {
		if len(r.Hops) > 0 {
			installed++
		}
	}
	if st.Error != "" {
		failed = 1
	}
	gauge(metricInstalled, float64(installed))
	gauge(metricRefused, float64(len(st.Received)-installed))
	gauge(metricFailed, failed)
}
