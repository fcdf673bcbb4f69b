package provider

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestStartTimes: a pod's start is measured once, when the API shows that all of it runs; pulls
// and init containers count in the total only. One that began under an earlier agent is not.
func TestStartTimes(t *testing.T) {
	now := time.Unix(1000, 0)
	at := func(seconds int) metav1.Time { return metav1.NewTime(now.Add(time.Duration(seconds) * time.Second)) }
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{CreationTimestamp: at(-20)},
		Spec:       corev1.PodSpec{Containers: make([]corev1.Container, 2)},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{State: running}, {}},
			InitContainerStatuses: []corev1.ContainerStatus{
				{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{StartedAt: at(-10), FinishedAt: at(-8)}}},
				{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{StartedAt: at(-7), FinishedAt: at(-5)}}},
			},
		},
	}
	p := &Provider{starts: newStartMetrics(), users: newUserMetrics(), timings: newTimings()}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(p.Collectors()...)
	measured := func() map[string]float64 {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			got[f.GetName()] = f.Metric[0].GetCounter().GetValue() + f.Metric[0].GetHistogram().GetSampleSum()
		}
		return got
	}
	w := &worker{p: p, started: now.Add(-18 * time.Second)}
	w.countStart(pod)
	w.countStart(pod)
	w.pulled(3 * time.Second)
	w.measureStart(pod, now)
	if got := measured()["kubelet_pod_start_total_duration_seconds"]; got != 0 {
		t.Errorf("measured %v before all containers run", got)
	}
	pod.Status.ContainerStatuses[1].State = running
	w.measureStart(pod, now)
	w.measureStart(pod, now.Add(time.Hour))
	old := &worker{p: p, attempts: map[string][]*attempt{"c": {}}}
	old.countStart(pod)
	old.measureStart(pod, now)
	for name, want := range map[string]float64{
		"kubelet_started_pods_total": 1, "kubelet_pod_start_duration_seconds": 18, "kubelet_pod_start_total_duration_seconds": 20,
		"kubelet_pod_start_sli_duration_seconds": 12,
	} {
		if got := measured()[name]; got != want {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}
}
