package kubeletmetrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/record"

	apiruntime "k8s.io/apimachinery/pkg/runtime"
)

// Starts counts containers and sandboxes as they start, and those that do not, by the events
// that tell of them.
type Starts struct {
	started, failed *prometheus.CounterVec
	sandboxes       prometheus.Counter
}

// NewStarts makes the counters; Collectors has to be registered by the caller.
func NewStarts() *Starts {
	return &Starts{
		started: counters("started_containers_total", "Cumulative number of containers started", "container_type"),
		failed:  counters("started_containers_errors_total", "Cumulative number of errors when starting containers", "container_type", "code"),
		sandboxes: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "kubelet", Name: "started_pods_errors_total", Help: "[ALPHA] Cumulative number of errors when starting pods",
		}),
	}
}

// Collectors are to be registered.
func (s *Starts) Collectors() []prometheus.Collector {
	return []prometheus.Collector{s.started, s.failed, s.sandboxes}
}

// Recorder counts what passes to r.
func (s *Starts) Recorder(r record.EventRecorder) record.EventRecorder { return recorder{r, s} }

type recorder struct {
	record.EventRecorder
	s *Starts
}

// Event implements record.EventRecorder.
func (r recorder) Event(object apiruntime.Object, kind, reason, message string) {
	r.s.count(object, reason, message)
	r.EventRecorder.Event(object, kind, reason, message)
}

func (s *Starts) count(object apiruntime.Object, reason, message string) {
	ref, ok := object.(*corev1.ObjectReference)
	if !ok || ref.GroupVersionKind().GroupKind() != (schema.GroupKind{Kind: "Pod"}) {
		return
	}
	switch reason {
	case "Started":
		s.started.WithLabelValues(containerType(ref.FieldPath)).Inc()
	case "Failed":
		if text, ok := strings.CutPrefix(message, "Error: "); ok && ref.FieldPath != "" {
			s.failed.WithLabelValues(containerType(ref.FieldPath), code(text)).Inc()
		}
	case "FailedCreatePodSandBox":
		s.sandboxes.Inc()
	}
}

// containerType is a kubelet's name for the list that a field path leads to.
func containerType(path string) string {
	switch {
	case strings.HasPrefix(path, "spec.initContainers"):
		return "init_container"
	case strings.HasPrefix(path, "spec.ephemeralContainers"):
		return "ephemeral_container"
	}
	return "container"
}

// code is the reason for a failure where the message is one, else that the start failed.
func code(message string) string {
	if strings.ContainsAny(message, " :") {
		return "RunContainerError"
	}
	return message
}
