package cadvisor

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// scrapeBudget bounds how long the figures of one scrape are collected.
const scrapeBudget = 20 * time.Second

// Collector reads a Source at each scrape.
type Collector struct{ source Source }

var _ prometheus.Collector = (*Collector)(nil)

// NewCollector makes the collector of a source.
func NewCollector(source Source) *Collector { return &Collector{source} }

var (
	scrapeError = prometheus.NewDesc("container_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise", nil, nil)
	versionInfo = prometheus.NewDesc("cadvisor_version_info", "A metric with a constant '1' value labeled by kernel version, OS version, docker version, cadvisor version & cadvisor revision.",
		[]string{"kernelVersion", "osVersion", "dockerVersion", "cadvisorVersion", "cadvisorRevision"}, nil)

	machineLabels = []string{"boot_id", "machine_id", "system_uuid"}
	machineSeries = []struct {
		desc *prometheus.Desc
		of   func(m Machine) float64
	}{
		{prometheus.NewDesc("machine_cpu_cores", "Number of logical CPU cores.", machineLabels, nil), func(m Machine) float64 { return float64(m.CPUs) }},
		{prometheus.NewDesc("machine_cpu_physical_cores", "Number of physical CPU cores.", machineLabels, nil), func(m Machine) float64 { return float64(m.PhysicalCores) }},
		{prometheus.NewDesc("machine_cpu_sockets", "Number of CPU sockets.", machineLabels, nil), func(m Machine) float64 { return float64(m.Sockets) }},
		{prometheus.NewDesc("machine_memory_bytes", "Amount of memory installed on the machine.", machineLabels, nil), func(m Machine) float64 { return float64(m.MemoryBytes) }},
		{prometheus.NewDesc("machine_swap_bytes", "Amount of swap memory available on the machine.", machineLabels, nil), func(m Machine) float64 { return float64(m.SwapBytes) }},
	}
)

// Describe implements prometheus.Collector.
func (*Collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- scrapeError
	ch <- versionInfo
	for _, m := range machineSeries {
		ch <- m.desc
	}
	for _, s := range all {
		ch <- s.desc
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeBudget)
	defer cancel()
	c.machine(ch)
	groups, err := c.source.Cgroups(ctx)
	if err != nil {
		ch <- prometheus.MustNewConstMetric(scrapeError, prometheus.GaugeValue, 1)
		return
	}
	ch <- prometheus.MustNewConstMetric(scrapeError, prometheus.GaugeValue, 0)
	for i := range groups {
		for _, s := range all {
			for _, value := range s.of(&groups[i]) {
				ch <- prometheus.MustNewConstMetric(s.desc, s.kind, value.value, groups[i].labels(value.more...)...)
			}
		}
	}
}

func (c *Collector) machine(ch chan<- prometheus.Metric) {
	m := c.source.Machine()
	ch <- prometheus.MustNewConstMetric(versionInfo, prometheus.GaugeValue, 1, m.KernelVersion, m.OSVersion, "", "", "")
	for _, s := range machineSeries {
		ch <- prometheus.MustNewConstMetric(s.desc, prometheus.GaugeValue, s.of(m), m.BootID, m.MachineID, m.SystemUUID)
	}
}
