package provider

import (
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

// userMetrics are a kubelet's of pods with user namespaces (pkg/kubelet/metrics).
type userMetrics struct{ started, failed prometheus.Counter }

func newUserMetrics() userMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "kubelet", Name: name, Help: "[ALPHA] " + help})
	}
	return userMetrics{
		started: counter("started_user_namespaced_pods_total", "Cumulative number of pods with user namespaces started"),
		failed:  counter("started_user_namespaced_pods_errors_total", "Cumulative number of errors when starting pods with user namespaces"),
	}
}

// Collectors are the provider's metrics.
func (p *Provider) Collectors() []prometheus.Collector {
	return append(p.starts.collectors(), p.users.started, p.users.failed, p.timings.steps, p.timings.starts)
}

// countFailure counts what holds such a pod's start back, as it is told.
func (w *worker) countFailure(pod *corev1.Pod, reason string) {
	if podplan.OwnUsers(pod) && (reason == "Failed" || reason == "FailedCreatePodSandBox") {
		w.p.users.failed.Inc()
	}
}
