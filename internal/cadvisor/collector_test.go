package cadvisor

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"github.com/vk-metal/vk-metal/systemd"
)

type fakeSource struct {
	groups []Cgroup
	err    error
}

func (f fakeSource) Cgroups(context.Context) ([]Cgroup, error) { return f.groups, f.err }

func (fakeSource) Machine() Machine {
	return Machine{BootID: "b", MachineID: "m", SystemUUID: "s", KernelVersion: "6.1", OSVersion: "Debian", CPUs: 4, PhysicalCores: 2, Sockets: 1, MemoryBytes: 4096}
}

func scrape(t *testing.T, source Source) string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(NewCollector(source))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	for _, family := range families {
		if _, err := expfmt.MetricFamilyToText(&text, family); err != nil {
			t.Fatal(err)
		}
	}
	return text.String()
}

// TestSeries holds names and labels to cAdvisor's, which dashboards name.
func TestSeries(t *testing.T) {
	container := Cgroup{
		Name: "uid/c/0", Image: "example.com/app:1", Namespace: "ns", Pod: "p", Container: "c", StartedAt: time.Unix(1000, 0),
		Stats: systemd.Stats{
			Time: time.Unix(2000, 0), CPUUsage: 3 * time.Second, CPUUser: 2 * time.Second, CPUSystem: time.Second,
			CPUPeriods: 10, CPUThrottledPeriods: 4, CPUThrottled: 500 * time.Millisecond,
			MemoryUsage: 100, MemoryWorkingSet: 90, MemoryRSS: 80, MemoryCache: 20, MemoryPeak: 120, MemoryLimit: 200, MemoryFailures: 6,
			PageFaults: 7, MajorPageFaults: 1, Processes: 5, OOMKills: 2,
			IOPressure: &systemd.Pressure{Some: systemd.PressureLine{Total: 1_500_000}, Full: systemd.PressureLine{Total: 500_000}},
		},
		Group: systemd.Cgroup{
			Path: "/kubepods.slice/x.service", PIDs: []int{1, 2}, CPU: systemd.CPULimits{Shares: 102, Quota: 50000, Period: 100000},
			Disks: []systemd.Disk{{Major: 4095, Minor: 7, Reads: 1, Writes: 2, ReadBytes: 512, WriteBytes: 1024}},
		},
	}
	container.Layer = &Layer{Used: 4096, Inodes: 3}
	pod := Cgroup{
		Namespace: "ns", Pod: "p", Group: systemd.Cgroup{Path: "/kubepods.slice/p.slice"},
		Links: []Link{{Name: "eth0", Received: Traffic{Bytes: 11, Packets: 2}, Sent: Traffic{Bytes: 22, Dropped: 3}}},
	}
	text := scrape(t, fakeSource{groups: []Cgroup{pod, container}})
	of := `container="c",%id="/kubepods.slice/x.service",image="example.com/app:1",%name="uid/c/0",namespace="ns",pod="p"`
	labels := func(before, between string) string { // labels are sorted by name
		return strings.Replace(strings.Replace(of, "%", before, 1), "%", between, 1)
	}
	for _, want := range []string{
		`container_cpu_usage_seconds_total{container="c",cpu="total",id="/kubepods.slice/x.service",image="example.com/app:1",name="uid/c/0",namespace="ns",pod="p"} 3`,
		"container_cpu_user_seconds_total{" + labels("", "") + "} 2",
		"container_cpu_system_seconds_total{" + labels("", "") + "} 1",
		"container_cpu_cfs_periods_total{" + labels("", "") + "} 10",
		"container_cpu_cfs_throttled_periods_total{" + labels("", "") + "} 4",
		"container_cpu_cfs_throttled_seconds_total{" + labels("", "") + "} 0.5",
		"container_memory_usage_bytes{" + labels("", "") + "} 100",
		"container_memory_working_set_bytes{" + labels("", "") + "} 90",
		"container_memory_rss{" + labels("", "") + "} 80",
		"container_memory_cache{" + labels("", "") + "} 20",
		"container_memory_max_usage_bytes{" + labels("", "") + "} 120",
		"container_memory_failcnt{" + labels("", "") + "} 6",
		`container_memory_failures_total{container="c",failure_type="pgmajfault",id="/kubepods.slice/x.service",image="example.com/app:1",name="uid/c/0",namespace="ns",pod="p",scope="hierarchy"} 1`,
		"container_oom_events_total{" + labels("", "") + "} 2",
		"container_fs_usage_bytes{" + labels(`device="",`, "") + "} 4096",
		"container_fs_inodes_total{" + labels(`device="",`, "") + "} 3",
		"container_fs_writes_bytes_total{" + labels(`device="4095:7",`, "") + "} 1024",
		"container_processes{" + labels("", "") + "} 2",
		"container_threads{" + labels("", "") + "} 5",
		"container_spec_cpu_shares{" + labels("", "") + "} 102",
		"container_spec_cpu_quota{" + labels("", "") + "} 50000",
		"container_spec_memory_limit_bytes{" + labels("", "") + "} 200",
		"container_start_time_seconds{" + labels("", "") + "} 1000",
		"container_last_seen{" + labels("", "") + "} 2000",
		"container_pressure_io_waiting_seconds_total{" + labels("", "") + "} 1.5",
		"container_pressure_io_stalled_seconds_total{" + labels("", "") + "} 0.5",
		`container_network_receive_bytes_total{container="",id="/kubepods.slice/p.slice",image="",interface="eth0",name="",namespace="ns",pod="p"} 11`,
		`container_network_transmit_packets_dropped_total{container="",id="/kubepods.slice/p.slice",image="",interface="eth0",name="",namespace="ns",pod="p"} 3`,
		`container_scrape_error 0`,
		`machine_cpu_cores{boot_id="b",machine_id="m",system_uuid="s"} 4`,
		`machine_memory_bytes{boot_id="b",machine_id="m",system_uuid="s"} 4096`,
		`cadvisor_version_info{cadvisorRevision="",cadvisorVersion="",dockerVersion="",kernelVersion="6.1",osVersion="Debian"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("lacks %s", want)
		}
	}
	for _, without := range []string{
		`container_pressure_cpu_waiting`,                                                            // the kernel does not tell
		`container_cpu_cfs_periods_total{container="",`,                                             // no quota
		`container_start_time_seconds{container="",`, `container_processes{container="",id="/kubep`, // a slice has neither
	} {
		if strings.Contains(text, without) {
			t.Errorf("has %s", without)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

func TestSourceFails(t *testing.T) {
	text := scrape(t, fakeSource{err: errors.New("no systemd")})
	if !strings.Contains(text, "container_scrape_error 1\n") || strings.Contains(text, "container_cpu") {
		t.Errorf("= %s", text)
	}
}

func TestLinks(t *testing.T) {
	links, err := Links(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Name == "lo" || strings.HasPrefix(l.Name, "vkm") {
			t.Errorf("tells of %s", l.Name)
		}
	}
	if _, err := Links(1 << 30); err == nil || !strings.Contains(err.Error(), "1073741824") {
		t.Errorf("a process that is not there: %v", err)
	}
}
