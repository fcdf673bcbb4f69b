package kubeletmetrics

import (
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/staticpods"
)

// Pods tells of the node's pods at each scrape.
type Pods struct {
	node string
	pods func() []*corev1.Pod
}

var _ prometheus.Collector = (*Pods)(nil)

// NewPods makes the collector; pods returns those of now with their status.
func NewPods(node string, pods func() []*corev1.Pod) *Pods { return &Pods{node, pods} }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("kubelet_"+name, "[ALPHA] "+help, labels, nil)
}

var (
	nodeName          = desc("node_name", "The node's name. The count is always 1.", "node")
	runningPods       = desc("running_pods", "Number of pods that have a running pod sandbox")
	runningContainers = desc("running_containers", "Number of containers currently running", "container_state")
	desiredPods       = desc("desired_pods", "The number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver.", "static")
	activePods        = desc("active_pods", "The number of pods the kubelet considers active and which are being considered when admitting new pods. static is true if the pod is not from the apiserver.", "static")
	mirrorPods        = desc("mirror_pods", "The number of mirror pods the kubelet will try to create (one per admitted static pod)")
	ephemeral         = desc("managed_ephemeral_containers", "Current number of ephemeral containers in pods managed by this kubelet.")
)

// Describe implements prometheus.Collector.
func (*Pods) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{nodeName, runningPods, runningContainers, desiredPods, activePods, mirrorPods, ephemeral} {
		ch <- d
	}
}

// census is what is counted.
type census struct {
	running, ephemeral int
	states             map[string]int
	desired, active    map[bool]int // by whether the pod is static
}

func (c *census) add(pod *corev1.Pod) {
	static := staticpods.IsUID(pod.UID)
	c.desired[static]++
	if pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
		c.active[static]++
	}
	c.ephemeral += len(pod.Spec.EphemeralContainers)
	runs := false
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			switch state := list[i].State; {
			case state.Running != nil:
				runs = true
				c.states["running"]++
			case state.Terminated != nil:
				c.states["exited"]++
			}
		}
	}
	if runs {
		c.running++
	}
}

// Collect implements prometheus.Collector.
func (p *Pods) Collect(ch chan<- prometheus.Metric) {
	c := census{states: map[string]int{"running": 0}, desired: map[bool]int{true: 0, false: 0}, active: map[bool]int{true: 0, false: 0}}
	for _, pod := range p.pods() {
		c.add(pod)
	}
	gauge := func(d *prometheus.Desc, value int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value), labels...)
	}
	gauge(nodeName, 1, p.node)
	gauge(runningPods, c.running)
	gauge(mirrorPods, c.active[true])
	gauge(ephemeral, c.ephemeral)
	for state, n := range c.states {
		gauge(runningContainers, n, state)
	}
	for static, label := range map[bool]string{true: "true", false: ""} {
		gauge(desiredPods, c.desired[static], label)
		gauge(activePods, c.active[static], label)
	}
}
