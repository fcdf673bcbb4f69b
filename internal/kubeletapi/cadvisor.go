package kubeletapi

import (
	"context"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// cadvisorMetrics are the figures under cAdvisor's names and labels, which dashboards use.
func (s *Server) cadvisorMetrics() http.Handler {
	registry := prometheus.NewRegistry()
	if s.o.Stats != nil {
		registry.MustRegister(cadvisorCollector{s.o.Stats})
	}
	return exposition(registry)
}

// cadvisorLabels are those that cAdvisor gives to a container's series; the pod's own
// cgroup has an empty container.
var cadvisorLabels = []string{"container", "id", "image", "name", "namespace", "pod"}

func cadvisorDesc(name, help string, more ...string) *prometheus.Desc {
	return desc(name, help, append(append([]string{}, cadvisorLabels...), more...)...)
}

var (
	cadvisorCPU       = cadvisorDesc("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", "cpu")
	cadvisorMemory    = cadvisorDesc("container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed")
	cadvisorWorking   = cadvisorDesc("container_memory_working_set_bytes", "Current working set in bytes.")
	cadvisorRSS       = cadvisorDesc("container_memory_rss", "Size of RSS in bytes.")
	cadvisorProcesses = cadvisorDesc("container_processes", "Number of processes running inside the container.")
	cadvisorReceived  = cadvisorDesc("container_network_receive_bytes_total", "Cumulative count of bytes received", "interface")
	cadvisorSent      = cadvisorDesc("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", "interface")
	cadvisorStart     = cadvisorDesc("container_start_time_seconds", "Start time of the container since unix epoch in seconds.")
	cadvisorDisk      = cadvisorDesc("container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", "device")
	cadvisorDiskMost  = cadvisorDesc("container_fs_limit_bytes", "Number of bytes that can be consumed by the container on this filesystem.", "device")
	cadvisorInodes    = cadvisorDesc("container_fs_inodes_total", "Number of Inodes", "device")
	cadvisorFree      = cadvisorDesc("container_fs_inodes_free", "Number of available Inodes", "device")
	cadvisorScrape    = desc("container_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise")
)

// cadvisorCollector makes cAdvisor's series of a Summary at each scrape.
type cadvisorCollector struct{ stats Stats }

// Describe implements prometheus.Collector.
func (cadvisorCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		cadvisorCPU, cadvisorMemory, cadvisorWorking, cadvisorRSS, cadvisorProcesses, cadvisorReceived, cadvisorSent, cadvisorStart, cadvisorScrape,
		cadvisorDisk, cadvisorDiskMost, cadvisorInodes, cadvisorFree,
	} {
		ch <- d
	}
	for _, p := range []pressureDescs{pressureCPU, pressureMemory, pressureIO} {
		ch <- p.waiting
		ch <- p.stalled
	}
}

// Collect implements prometheus.Collector.
func (c cadvisorCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeBudget)
	defer cancel()
	summary, err := c.stats.Summary(ctx, false)
	if err != nil {
		ch <- prometheus.MustNewConstMetric(cadvisorScrape, prometheus.GaugeValue, 1)
		return
	}
	ch <- prometheus.MustNewConstMetric(cadvisorScrape, prometheus.GaugeValue, 0)
	for i := range summary.Pods {
		pod := &summary.Pods[i]
		labels := func(container string) []string {
			return []string{container, "", "", "", pod.PodRef.Namespace, pod.PodRef.Name}
		}
		cadvisorUsage(ch, pod.CPU, pod.Memory, labels(""))
		cadvisorPressure(ch, pod.CPU, pod.Memory, pod.IO, labels(""))
		processes(ch, pod.ProcessStats, labels(""))
		network(ch, pod.Network, labels("POD"))
		for _, container := range pod.Containers {
			cadvisorUsage(ch, container.CPU, container.Memory, labels(container.Name))
			cadvisorPressure(ch, container.CPU, container.Memory, container.IO, labels(container.Name))
			disk(ch, container.Rootfs, labels(container.Name))
			if !container.StartTime.IsZero() {
				ch <- prometheus.MustNewConstMetric(cadvisorStart, prometheus.GaugeValue, float64(container.StartTime.Unix()), labels(container.Name)...)
			}
		}
	}
}

func cadvisorUsage(ch chan<- prometheus.Metric, cpu *statsv1alpha1.CPUStats, mem *statsv1alpha1.MemoryStats, labels []string) {
	if cpu != nil && cpu.UsageCoreNanoSeconds != nil {
		ch <- prometheus.MustNewConstMetric(cadvisorCPU, prometheus.CounterValue, float64(*cpu.UsageCoreNanoSeconds)/1e9, append(labels, "total")...)
	}
	if mem == nil {
		return
	}
	for d, value := range map[*prometheus.Desc]*uint64{cadvisorMemory: mem.UsageBytes, cadvisorWorking: mem.WorkingSetBytes, cadvisorRSS: mem.RSSBytes} {
		if value != nil {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(*value), labels...)
		}
	}
}

// disk tells of the writable layer; it is on no device of its own.
func disk(ch chan<- prometheus.Metric, rootfs *statsv1alpha1.FsStats, labels []string) {
	if rootfs == nil {
		return
	}
	for d, value := range map[*prometheus.Desc]*uint64{
		cadvisorDisk: rootfs.UsedBytes, cadvisorDiskMost: rootfs.CapacityBytes, cadvisorInodes: rootfs.Inodes, cadvisorFree: rootfs.InodesFree,
	} {
		if value != nil {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(*value), append(labels, "")...)
		}
	}
}

func processes(ch chan<- prometheus.Metric, stats *statsv1alpha1.ProcessStats, labels []string) {
	if stats != nil && stats.ProcessCount != nil {
		ch <- prometheus.MustNewConstMetric(cadvisorProcesses, prometheus.GaugeValue, float64(*stats.ProcessCount), labels...)
	}
}

func network(ch chan<- prometheus.Metric, stats *statsv1alpha1.NetworkStats, labels []string) {
	if stats == nil {
		return
	}
	for _, link := range stats.Interfaces {
		if link.RxBytes != nil {
			ch <- prometheus.MustNewConstMetric(cadvisorReceived, prometheus.CounterValue, float64(*link.RxBytes), append(labels, link.Name)...)
		}
		if link.TxBytes != nil {
			ch <- prometheus.MustNewConstMetric(cadvisorSent, prometheus.CounterValue, float64(*link.TxBytes), append(labels, link.Name)...)
		}
	}
}
