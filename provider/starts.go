package provider

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

// startMetrics are a kubelet's of pods that begin (pkg/kubelet/metrics; the times are those of
// pkg/kubelet/util/pod_startup_latency_tracker.go).
type startMetrics struct {
	pods             prometheus.Counter
	seen, total, sli prometheus.Histogram
}

func newStartMetrics() startMetrics {
	buckets := []float64{0.5, 1, 2, 3, 4, 5, 6, 8, 10, 20, 30, 45, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600}
	duration := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "kubelet", Name: name, Help: "[ALPHA] " + help, Buckets: buckets})
	}
	return startMetrics{
		pods: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "kubelet", Name: "started_pods_total", Help: "[ALPHA] Cumulative number of pods started"}),
		seen: duration("pod_start_duration_seconds", "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run"),
		total: duration("pod_start_total_duration_seconds",
			"Duration in seconds to start a pod since creation, including time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch"),
		sli: duration("pod_start_sli_duration_seconds",
			"Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch"),
	}
}

func (m startMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.pods, m.seen, m.total, m.sli}
}

// startWatch is what one pod's start has shown so far. The zero value is of a pod that began
// under an earlier agent: it is not measured.
type startWatch struct {
	began, done bool
	// pulled is how long images of the pod have been asked for, all together.
	pulled time.Duration
}

// countStart counts a pod that begins under this agent, once.
func (w *worker) countStart(pod *corev1.Pod) {
	if w.counted {
		return
	}
	w.counted = true
	if len(w.attempts) > 0 { // it began under an earlier agent
		return
	}
	w.begun.began = true
	w.p.starts.pods.Inc()
	if podplan.OwnUsers(pod) {
		w.p.users.started.Inc()
	}
}

// measureStart takes the pod's times once the API shows that all of its containers run.
func (w *worker) measureStart(pod *corev1.Pod, now time.Time) {
	if !w.begun.began || w.begun.done || !allRun(pod) {
		return
	}
	w.begun.done = true
	total := now.Sub(pod.CreationTimestamp.Time)
	w.p.starts.seen.Observe(now.Sub(w.started).Seconds())
	w.p.starts.total.Observe(total.Seconds())
	w.mu.Lock()
	pulled := w.begun.pulled
	w.mu.Unlock()
	w.p.starts.sli.Observe(max(0, total-pulled-initTime(pod)).Seconds())
}

// pulled adds the time that one image has taken.
func (w *worker) pulled(took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begun.pulled += took
}

func allRun(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodRunning && len(pod.Status.ContainerStatuses) == len(pod.Spec.Containers) &&
		!slices.ContainsFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return s.State.Running == nil })
}

// initTime is how long init containers have run, from the first one's start to the last one's end.
func initTime(pod *corev1.Pod) time.Duration {
	var from, to time.Time
	for i := range pod.Status.InitContainerStatuses {
		ended := pod.Status.InitContainerStatuses[i].State.Terminated
		if ended == nil {
			continue
		}
		if from.IsZero() || ended.StartedAt.Time.Before(from) {
			from = ended.StartedAt.Time
		}
		if ended.FinishedAt.After(to) {
			to = ended.FinishedAt.Time
		}
	}
	return to.Sub(from)
}
