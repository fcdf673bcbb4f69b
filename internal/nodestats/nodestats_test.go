package nodestats

import (
	"context"
	"errors"
	"testing"
	"time"

	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

type fakeSource struct {
	node Reading
	pods []Pod
	err  error
	// disks is what was last asked for.
	disks bool
}

func (f *fakeSource) Node(context.Context) (Reading, error) { return f.node, f.err }
func (f *fakeSource) Pods(_ context.Context, disks bool) ([]Pod, error) {
	f.disks = disks
	return f.pods, nil
}

func (f *fakeSource) NodeFS() (statsv1alpha1.FsStats, error) {
	capacity := uint64(1000)
	return statsv1alpha1.FsStats{CapacityBytes: &capacity}, nil
}

func (f *fakeSource) ImageFS() (statsv1alpha1.FsStats, error) {
	return statsv1alpha1.FsStats{}, errors.New("gone")
}

func TestRates(t *testing.T) {
	start := time.Now()
	at := func(seconds int, cpu time.Duration) Reading {
		return Reading{Time: start.Add(time.Duration(seconds) * time.Second), CPU: cpu, WorkingSet: 60, Limit: 100}
	}
	steps := []struct {
		name  string
		now   Reading
		cores float64 // below 0: no rate
	}{
		{"first reading", at(0, time.Second), -1},
		{"too soon for a rate", at(1, 2*time.Second), -1},
		{"half a core", at(10, 6*time.Second), 0.5},
		{"too soon keeps the rate", at(11, 11*time.Second), 0.5},
		{"next window", at(20, 16*time.Second), 1},
		{"clock starts anew", at(30, time.Second), -1},
	}
	f := &fakeSource{}
	s := New("n", start, f)
	for _, step := range steps {
		f.node = step.now
		f.pods = []Pod{{Name: "p", Namespace: "ns", UID: "u", Containers: []Container{{Name: "c", Reading: step.now}}, Reading: step.now}}
		summary, err := s.Summary(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		for who, cpu := range map[string]*statsv1alpha1.CPUStats{"node": summary.Node.CPU, "pod": summary.Pods[0].CPU, "container": summary.Pods[0].Containers[0].CPU} {
			if (cpu.UsageNanoCores == nil) != (step.cores < 0) || cpu.UsageNanoCores != nil && float64(*cpu.UsageNanoCores) != step.cores*1e9 {
				t.Errorf("%s, %s: rate %v, want %v cores", step.name, who, cpu.UsageNanoCores, step.cores)
			}
		}
		if available := summary.Node.Memory.AvailableBytes; available == nil || *available != 40 {
			t.Errorf("available %v", available)
		}
		if summary.Node.Fs == nil || summary.Node.Runtime != nil {
			t.Error("file systems")
		}
	}
	f.err = errors.New("broken")
	if _, err := s.Summary(t.Context(), true); !errors.Is(err, f.err) {
		t.Errorf("error %v", err)
	}
}

func TestPressure(t *testing.T) {
	psi := func(total uint64) *statsv1alpha1.PSIStats {
		return &statsv1alpha1.PSIStats{Some: statsv1alpha1.PSIData{Total: total}}
	}
	with := Reading{Time: time.Now(), CPUPressure: psi(1), MemoryPressure: psi(2), IOPressure: psi(3)}
	f := &fakeSource{node: with, pods: []Pod{{Name: "p", UID: "u", Reading: with, Containers: []Container{{Name: "with", Reading: with}, {Name: "without"}}}}}
	summary, err := New("n", time.Now(), f).Summary(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	pod := summary.Pods[0]
	for who, got := range map[string][3]*statsv1alpha1.PSIStats{
		"node":      {summary.Node.CPU.PSI, summary.Node.Memory.PSI, summary.Node.IO.PSI},
		"pod":       {pod.CPU.PSI, pod.Memory.PSI, pod.IO.PSI},
		"container": {pod.Containers[0].CPU.PSI, pod.Containers[0].Memory.PSI, pod.Containers[0].IO.PSI},
	} {
		for i, p := range got {
			if p == nil || p.Some.Total != uint64(i)+1 {
				t.Errorf("%s: pressure %d is %+v", who, i, p)
			}
		}
	}
	if c := pod.Containers[1]; c.CPU.PSI != nil || c.Memory.PSI != nil || c.IO != nil {
		t.Errorf("pressure out of nothing: %+v", c)
	}
}

// TestDisk: what a pod takes of the disk is told with how large that is, and is not asked for by who
// wants CPU and memory only.
func TestDisk(t *testing.T) {
	disk := func(bytes uint64) *Disk { return &Disk{Time: time.Unix(100, 0), Bytes: bytes, Inodes: bytes / 10} }
	f := &fakeSource{pods: []Pod{{
		Name: "p", UID: "u", Ephemeral: disk(50), Containers: []Container{{Name: "a", Rootfs: disk(10), Logs: disk(20)}, {Name: "new"}},
	}}}
	s := New("n", time.Now(), f)
	summary, err := s.Summary(t.Context(), false)
	if err != nil || !f.disks {
		t.Fatal(err, f.disks)
	}
	pod := summary.Pods[0]
	for what, c := range map[string]struct {
		got  *statsv1alpha1.FsStats
		want uint64
	}{"pod": {pod.EphemeralStorage, 50}, "rootfs": {pod.Containers[0].Rootfs, 10}, "logs": {pod.Containers[0].Logs, 20}} {
		if c.got == nil || *c.got.UsedBytes != c.want || *c.got.InodesUsed != c.want/10 || *c.got.CapacityBytes != 1000 || c.got.Time.Unix() != 100 {
			t.Errorf("%s: %+v", what, c.got)
		}
	}
	if c := pod.Containers[1]; c.Rootfs != nil || c.Logs != nil {
		t.Errorf("figures out of nothing: %+v", c)
	}
	if _, err := s.Summary(t.Context(), true); err != nil || f.disks {
		t.Error("disks are measured for who does not want to know", err)
	}
}

// TestNode: what a kubelet tells of the server beside CPU and memory; and of pods' networks.
func TestNode(t *testing.T) {
	rx := uint64(5)
	links := &statsv1alpha1.NetworkStats{InterfaceStats: statsv1alpha1.InterfaceStats{Name: "eth0", RxBytes: &rx}}
	f := &fakeSource{
		node: Reading{Swap: 10, SwapLimit: 100, Processes: 7, ProcessLimit: 32768, Links: links},
		pods: []Pod{{Name: "p", UID: "u", Reading: Reading{Swap: 3}, Network: links}},
	}
	summary, err := New("n", time.Now(), f).Summary(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	node, pod := summary.Node, summary.Pods[0]
	if node.Swap == nil || *node.Swap.SwapUsageBytes != 10 || *node.Swap.SwapAvailableBytes != 90 {
		t.Errorf("swap of the node: %+v", node.Swap)
	}
	if pod.Swap == nil || *pod.Swap.SwapUsageBytes != 3 || pod.Swap.SwapAvailableBytes != nil {
		t.Errorf("swap of the pod: %+v", pod.Swap)
	}
	if node.Rlimit == nil || *node.Rlimit.MaxPID != 32768 || *node.Rlimit.NumOfRunningProcesses != 7 {
		t.Errorf("tasks: %+v", node.Rlimit)
	}
	if node.Network == nil || pod.Network == nil || *pod.Network.RxBytes != 5 {
		t.Errorf("networks: %+v, %+v", node.Network, pod.Network)
	}
}
