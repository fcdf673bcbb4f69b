package kubeletapi

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

func volumeDesc(name, help string) *prometheus.Desc {
	return desc("kubelet_volume_stats_"+name, "[ALPHA] "+help, "namespace", "persistentvolumeclaim")
}

// Names, help and labels are kubelet 1.35's (pkg/kubelet/metrics/collectors/volume_stats.go).
var (
	volumeCapacity   = volumeDesc("capacity_bytes", "Capacity in bytes of the volume")
	volumeAvailable  = volumeDesc("available_bytes", "Number of available bytes in the volume")
	volumeUsed       = volumeDesc("used_bytes", "Number of used bytes in the volume")
	volumeInodes     = volumeDesc("inodes", "Maximum number of inodes in the volume")
	volumeInodesFree = volumeDesc("inodes_free", "Number of free inodes in the volume")
	volumeInodesUsed = volumeDesc("inodes_used", "Number of used inodes in the volume")
	volumeAbnormal   = volumeDesc("health_status_abnormal",
		"Abnormal volume health status. The count is either 1 or 0. 1 indicates the volume is unhealthy, 0 indicates volume is healthy")
)

// containerLogs is kubelet 1.35's (pkg/kubelet/metrics/collectors/log_metrics.go).
var containerLogs = desc("kubelet_container_log_filesystem_used_bytes", "[ALPHA] Bytes used by the container's logs on the filesystem.",
	"uid", "namespace", "pod", "container")

// volumeCollector makes the series of claims, and of containers' logs, of a Summary at each scrape.
type volumeCollector struct{ stats Stats }

// Describe implements prometheus.Collector.
func (volumeCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		volumeCapacity, volumeAvailable, volumeUsed, volumeInodes, volumeInodesFree, volumeInodesUsed, volumeAbnormal, containerLogs,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. A claim of several pods is told once.
func (c volumeCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeBudget)
	defer cancel()
	summary, err := c.stats.Summary(ctx, false)
	if err != nil {
		return
	}
	told := map[statsv1alpha1.PVCReference]bool{}
	for i := range summary.Pods {
		ref := summary.Pods[i].PodRef
		for _, container := range summary.Pods[i].Containers {
			if logs := container.Logs; logs != nil && logs.UsedBytes != nil {
				ch <- prometheus.MustNewConstMetric(containerLogs, prometheus.GaugeValue, float64(*logs.UsedBytes), ref.UID, ref.Namespace, ref.Name, container.Name)
			}
		}
		for _, volume := range summary.Pods[i].VolumeStats {
			if volume.PVCRef == nil || told[*volume.PVCRef] {
				continue
			}
			told[*volume.PVCRef] = true
			volumeSeries(ch, &volume)
		}
	}
}

func volumeSeries(ch chan<- prometheus.Metric, volume *statsv1alpha1.VolumeStats) {
	gauge := func(d *prometheus.Desc, value float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, volume.PVCRef.Namespace, volume.PVCRef.Name)
	}
	for d, value := range map[*prometheus.Desc]*uint64{
		volumeCapacity: volume.CapacityBytes, volumeAvailable: volume.AvailableBytes, volumeUsed: volume.UsedBytes,
		volumeInodes: volume.Inodes, volumeInodesFree: volume.InodesFree, volumeInodesUsed: volume.InodesUsed,
	} {
		if value != nil {
			gauge(d, float64(*value))
		}
	}
	if health := volume.VolumeHealthStats; health != nil {
		abnormal := 0.0
		if health.Abnormal {
			abnormal = 1
		}
		gauge(volumeAbnormal, abnormal)
	}
}
