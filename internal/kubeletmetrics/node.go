package kubeletmetrics

import (
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Node counts evictions and pulls.
type Node struct {
	evictions *prometheus.CounterVec
	pulls     *prometheus.HistogramVec
}

// NewNode makes the counters; Collectors has to be registered by the caller.
func NewNode() *Node {
	return &Node{
		evictions: counters("evictions", "Cumulative number of pod evictions by eviction signal", "eviction_signal"),
		pulls: histograms("image_pull_duration_seconds", "Duration in seconds to pull an image.",
			[]float64{1, 5, 10, 20, 30, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600}, "image_size_in_bytes"),
	}
}

// Collectors are to be registered.
func (n *Node) Collectors() []prometheus.Collector {
	return []prometheus.Collector{n.evictions, n.pulls}
}

// Evicted counts one eviction.
func (n *Node) Evicted(signal string) { n.evictions.WithLabelValues(signal).Inc() }

// Pulled counts one image of a registry's; size is in bytes.
func (n *Node) Pulled(size int64, took time.Duration) {
	n.pulls.WithLabelValues(sizeBucket(size)).Observe(took.Seconds())
}

const (
	mb = 1 << 20
	gb = 1 << 30
)

// sizeBuckets are a kubelet's names of sizes; each begins where the one before ends.
var sizeBuckets = []struct {
	from int64
	name string
}{
	{100 * gb, "GT100GB"},
	{60 * gb, "60GB-100GB"},
	{40 * gb, "40GB-60GB"},
	{30 * gb, "30GB-40GB"},
	{20 * gb, "20GB-30GB"},
	{10 * gb, "10GB-20GB"},
	{5 * gb, "5GB-10GB"},
	{gb, "1GB-5GB"},
	{500 * mb, "500MB-1GB"},
	{100 * mb, "100MB-500MB"},
	{10 * mb, "10MB-100MB"},
	{0, "0-10MB"},
}

func sizeBucket(size int64) string {
	for _, b := range sizeBuckets {
		if size >= b.from {
			return b.name
		}
	}
	return "N/A"
}

// NewExpiry tells how long a certificate is valid yet, in seconds, below 0 once it has expired;
// +Inf while there is none. which is "client" or "server".
func NewExpiry(which string, expires func() time.Time) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "kubelet_certificate_manager_" + which + "_ttl_seconds",
		Help: "[ALPHA] Gauge of the shortest TTL (time-to-live) of the Kubelet's " + which +
			" certificate. The value is in seconds until certificate expiry (negative if already expired). If " + which + " certificate is invalid or unused, the value will be +INF.",
	}, func() float64 {
		at := expires()
		if at.IsZero() {
			return math.Inf(1)
		}
		return math.Trunc(time.Until(at).Seconds())
	})
}
