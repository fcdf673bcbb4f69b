package kubeletapi

import (
	"github.com/prometheus/client_golang/prometheus"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// pressureDescs are cAdvisor's two series of a resource's pressure (PSI): how long some tasks
// waited for it, and how long no task could go on.
type pressureDescs struct{ waiting, stalled *prometheus.Desc }

func describePressure(resource, congestion string) pressureDescs {
	return pressureDescs{
		waiting: cadvisorDesc("container_pressure_"+resource+"_waiting_seconds_total",
			"Total time duration tasks in the container have waited due to "+congestion+" congestion."),
		stalled: cadvisorDesc("container_pressure_"+resource+"_stalled_seconds_total",
			"Total time duration no tasks in the container could make progress due to "+congestion+" congestion."),
	}
}

var (
	pressureCPU    = describePressure("cpu", "CPU")
	pressureMemory = describePressure("memory", "memory")
	pressureIO     = describePressure("io", "IO")
)

// cadvisorPressure sends what the kernel tells on cgroup v2, and nothing on v1.
func cadvisorPressure(ch chan<- prometheus.Metric, cpu *statsv1alpha1.CPUStats, mem *statsv1alpha1.MemoryStats, io *statsv1alpha1.IOStats, labels []string) {
	if cpu != nil {
		pressureCPU.send(ch, cpu.PSI, labels)
	}
	if mem != nil {
		pressureMemory.send(ch, mem.PSI, labels)
	}
	if io != nil {
		pressureIO.send(ch, io.PSI, labels)
	}
}

// send turns microseconds into seconds.
func (p pressureDescs) send(ch chan<- prometheus.Metric, psi *statsv1alpha1.PSIStats, labels []string) {
	if psi == nil {
		return
	}
	ch <- prometheus.MustNewConstMetric(p.waiting, prometheus.CounterValue, float64(psi.Some.Total)/1e6, labels...)
	ch <- prometheus.MustNewConstMetric(p.stalled, prometheus.CounterValue, float64(psi.Full.Total)/1e6, labels...)
}
