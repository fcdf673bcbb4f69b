package kubeletapi

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// requests are a kubelet's metrics of its own API (pkg/kubelet/server/metrics).
type requests struct {
	total    *prometheus.CounterVec
	took     *prometheus.HistogramVec
	inFlight *prometheus.GaugeVec
}

var requestLabels = []string{"method", "path", "server_type", "long_running"}

func newRequests() *requests {
	return &requests{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kubelet_http_requests_total", Help: "[ALPHA] Number of the http requests received since the server started",
		}, requestLabels),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kubelet_http_requests_duration_seconds", Help: "[ALPHA] Duration in seconds to serve http requests", Buckets: prometheus.DefBuckets,
		}, requestLabels),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kubelet_http_inflight_requests", Help: "[ALPHA] Number of the inflight http requests",
		}, requestLabels),
	}
}

func (q *requests) collectors() []prometheus.Collector {
	return []prometheus.Collector{q.total, q.took, q.inFlight}
}

// count counts what next serves, whoever asks.
func (q *requests) count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := metricPath(r.URL.Path)
		labels := []string{metricMethod(r.Method), path, "readwrite", strconv.FormatBool(longRunning(path))}
		q.total.WithLabelValues(labels...).Inc()
		q.inFlight.WithLabelValues(labels...).Inc()
		begin := time.Now()
		defer func() {
			q.inFlight.WithLabelValues(labels...).Dec()
			q.took.WithLabelValues(labels...).Observe(time.Since(begin).Seconds())
		}()
		next.ServeHTTP(w, r)
	})
}

// metricMethod is a method that HTTP has, or "other": a client may write anything.
func metricMethod(method string) string {
	switch method {
	case http.MethodOptions, http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodTrace, http.MethodConnect:
		return method
	}
	return "other"
}

// metricPath is as much of a path as a label may hold, as a kubelet shortens it: of a path that
// names pods only the call, of one that is not known "other".
func metricPath(path string) string {
	first, rest, _ := strings.Cut(strings.Trim(path, "/"), "/")
	switch first {
	case "exec", "attach", "portForward", "containerLogs", "run", "pods", "runningpods", "healthz", "configz", "logs", "debug", "checkpoint", "stats":
		return first
	case "metrics":
		switch rest {
		case "":
			return first
		case "cadvisor", "probes", "resource":
			return first + "/" + rest
		}
	}
	return "other"
}

// longRunning are the calls that last as long as the client wants.
func longRunning(path string) bool {
	switch path {
	case "exec", "attach", "portForward", "debug":
		return true
	}
	return false
}
