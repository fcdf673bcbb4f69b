package cadvisor

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// labels are those of every series of a cgroup, in cAdvisor's order.
var labels = []string{"container", "id", "image", "name", "namespace", "pod"}

func (c *Cgroup) labels(more ...string) []string {
	return append([]string{c.Container, c.Group.Path, c.Image, c.Name, c.Namespace, c.Pod}, more...)
}

// sample is one value of a series, with its labels beyond those of every series.
type sample struct {
	value float64
	more  []string
}

// series is one metric of cAdvisor's (metrics/prometheus.go); of tells its values of a cgroup.
type series struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(c *Cgroup) []sample
}

func newSeries(kind prometheus.ValueType, name, help string, of func(c *Cgroup) []sample, more ...string) series {
	return series{desc: prometheus.NewDesc(name, help, append(append([]string{}, labels...), more...), nil), kind: kind, of: of}
}

func counter(name, help string, of func(c *Cgroup) []sample, more ...string) series {
	return newSeries(prometheus.CounterValue, name, help, of, more...)
}

func gauge(name, help string, of func(c *Cgroup) []sample, more ...string) series {
	return newSeries(prometheus.GaugeValue, name, help, of, more...)
}

func one(value float64, more ...string) []sample { return []sample{{value: value, more: more}} }

func number(of func(c *Cgroup) uint64) func(c *Cgroup) []sample {
	return func(c *Cgroup) []sample { return one(float64(of(c))) }
}

func seconds(of func(c *Cgroup) time.Duration) func(c *Cgroup) []sample {
	return func(c *Cgroup) []sample { return one(of(c).Seconds()) }
}

// ifQuota leaves a value out where there is no CPU quota, as cAdvisor does.
func ifQuota(of func(c *Cgroup) []sample) func(c *Cgroup) []sample {
	return func(c *Cgroup) []sample {
		if c.Group.CPU.Quota == 0 {
			return nil
		}
		return of(c)
	}
}

func perDisk(of func(c *Cgroup, i int) uint64) func(c *Cgroup) []sample {
	return func(c *Cgroup) []sample {
		var list []sample
		for i, disk := range c.Group.Disks {
			list = append(list, sample{float64(of(c, i)), []string{disk.DeviceName()}})
		}
		return list
	}
}

func perLink(of func(l *Link) uint64) func(c *Cgroup) []sample {
	return func(c *Cgroup) []sample {
		var list []sample
		for i := range c.Links {
			list = append(list, sample{float64(of(&c.Links[i])), []string{c.Links[i].Name}})
		}
		return list
	}
}

func ofLayer(of func(l *Layer) uint64) func(c *Cgroup) []sample {
	return func(c *Cgroup) []sample {
		if c.Layer == nil {
			return nil
		}
		return one(float64(of(c.Layer)), "")
	}
}

// faults are told of the cgroup with those below it ("hierarchy"), and of a container's alone.
func faults(c *Cgroup) []sample {
	var list []sample
	for _, scope := range []string{"container", "hierarchy"} {
		list = append(list,
			sample{float64(c.Stats.PageFaults), []string{"pgfault", scope}},
			sample{float64(c.Stats.MajorPageFaults), []string{"pgmajfault", scope}})
	}
	return list
}

// all are the series, in the groups of cAdvisor's source.
var all = []series{
	gauge("container_last_seen", "Last time a container was seen by the exporter", func(c *Cgroup) []sample { return one(float64(c.Stats.Time.Unix())) }),
	gauge("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", func(c *Cgroup) []sample {
		if c.StartedAt.IsZero() {
			return nil
		}
		return one(float64(c.StartedAt.Unix()))
	}),

	counter("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.",
		func(c *Cgroup) []sample { return one(c.Stats.CPUUsage.Seconds(), "total") }, "cpu"),
	counter("container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.", seconds(func(c *Cgroup) time.Duration { return c.Stats.CPUUser })),
	counter("container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.", seconds(func(c *Cgroup) time.Duration { return c.Stats.CPUSystem })),
	counter("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", ifQuota(number(func(c *Cgroup) uint64 { return c.Stats.CPUPeriods }))),
	counter("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.",
		ifQuota(number(func(c *Cgroup) uint64 { return c.Stats.CPUThrottledPeriods }))),
	counter("container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.",
		ifQuota(seconds(func(c *Cgroup) time.Duration { return c.Stats.CPUThrottled }))),

	gauge("container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed",
		number(func(c *Cgroup) uint64 { return c.Stats.MemoryUsage })),
	gauge("container_memory_working_set_bytes", "Current working set in bytes.", number(func(c *Cgroup) uint64 { return c.Stats.MemoryWorkingSet })),
	gauge("container_memory_rss", "Size of RSS in bytes.", number(func(c *Cgroup) uint64 { return c.Stats.MemoryRSS })),
	gauge("container_memory_cache", "Number of bytes of page cache memory.", number(func(c *Cgroup) uint64 { return c.Stats.MemoryCache })),
	gauge("container_memory_mapped_file", "Size of memory mapped files in bytes.", number(func(c *Cgroup) uint64 { return c.Stats.MemoryMapped })),
	gauge("container_memory_swap", "Container swap usage in bytes.", number(func(c *Cgroup) uint64 { return c.Stats.MemorySwap })),
	gauge("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes", number(func(c *Cgroup) uint64 { return c.Stats.MemoryPeak })),
	counter("container_memory_failcnt", "Number of memory usage hits limits", number(func(c *Cgroup) uint64 { return c.Stats.MemoryFailures })),
	counter("container_memory_failures_total", "Cumulative count of memory allocation failures.", faults, "failure_type", "scope"),
	counter("container_oom_events_total", "Count of out of memory events observed for the container", number(func(c *Cgroup) uint64 { return c.Stats.OOMKills })),

	gauge("container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", ofLayer(func(l *Layer) uint64 { return l.Used }), "device"),
	gauge("container_fs_limit_bytes", "Number of bytes that can be consumed by the container on this filesystem.",
		ofLayer(func(l *Layer) uint64 { return l.Capacity }), "device"),
	gauge("container_fs_inodes_total", "Number of Inodes", ofLayer(func(l *Layer) uint64 { return l.Inodes }), "device"),
	gauge("container_fs_inodes_free", "Number of available Inodes", ofLayer(func(l *Layer) uint64 { return l.InodesFree }), "device"),
	counter("container_fs_reads_total", "Cumulative count of reads completed", perDisk(func(c *Cgroup, i int) uint64 { return c.Group.Disks[i].Reads }), "device"),
	counter("container_fs_writes_total", "Cumulative count of writes completed", perDisk(func(c *Cgroup, i int) uint64 { return c.Group.Disks[i].Writes }), "device"),
	counter("container_fs_reads_bytes_total", "Cumulative count of bytes read", perDisk(func(c *Cgroup, i int) uint64 { return c.Group.Disks[i].ReadBytes }), "device"),
	counter("container_fs_writes_bytes_total", "Cumulative count of bytes written", perDisk(func(c *Cgroup, i int) uint64 { return c.Group.Disks[i].WriteBytes }), "device"),

	gauge("container_processes", "Number of processes running inside the container.", func(c *Cgroup) []sample {
		if c.Container == "" {
			return nil // they are in the containers' cgroups
		}
		return one(float64(len(c.Group.PIDs)))
	}),
	gauge("container_threads", "Number of threads running inside the container", number(func(c *Cgroup) uint64 { return c.Stats.Processes })),

	gauge("container_spec_cpu_shares", "CPU share of the container.", number(func(c *Cgroup) uint64 { return c.Group.CPU.Shares })),
	gauge("container_spec_cpu_period", "CPU period of the container.", number(func(c *Cgroup) uint64 { return c.Group.CPU.Period })),
	gauge("container_spec_cpu_quota", "CPU quota of the container.", ifQuota(number(func(c *Cgroup) uint64 { return c.Group.CPU.Quota }))),
	gauge("container_spec_memory_limit_bytes", "Memory limit for the container.", number(func(c *Cgroup) uint64 { return c.Stats.MemoryLimit })),

	counter("container_network_receive_bytes_total", "Cumulative count of bytes received", perLink(func(l *Link) uint64 { return l.Received.Bytes }), "interface"),
	counter("container_network_receive_packets_total", "Cumulative count of packets received", perLink(func(l *Link) uint64 { return l.Received.Packets }), "interface"),
	counter("container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving",
		perLink(func(l *Link) uint64 { return l.Received.Dropped }), "interface"),
	counter("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving",
		perLink(func(l *Link) uint64 { return l.Received.Errors }), "interface"),
	counter("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", perLink(func(l *Link) uint64 { return l.Sent.Bytes }), "interface"),
	counter("container_network_transmit_packets_total", "Cumulative count of packets transmitted", perLink(func(l *Link) uint64 { return l.Sent.Packets }), "interface"),
	counter("container_network_transmit_packets_dropped_total", "Cumulative count of packets dropped while transmitting",
		perLink(func(l *Link) uint64 { return l.Sent.Dropped }), "interface"),
	counter("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting",
		perLink(func(l *Link) uint64 { return l.Sent.Errors }), "interface"),

	pressure("cpu", "waiting", "Total time duration tasks in the container have waited due to CPU congestion.", cpuPressure, some),
	pressure("cpu", "stalled", "Total time duration no tasks in the container could make progress due to CPU congestion.", cpuPressure, full),
	pressure("memory", "waiting", "Total time duration tasks in the container have waited due to memory congestion.", memoryPressure, some),
	pressure("memory", "stalled", "Total time duration no tasks in the container could make progress due to memory congestion.", memoryPressure, full),
	pressure("io", "waiting", "Total time duration tasks in the container have waited due to IO congestion.", ioPressure, some),
	pressure("io", "stalled", "Total time duration no tasks in the container could make progress due to IO congestion.", ioPressure, full),
}
