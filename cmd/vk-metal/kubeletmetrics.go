package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vk-metal/vk-metal/internal/bootstrap"
	"github.com/vk-metal/vk-metal/internal/kubeletmetrics"
	"github.com/vk-metal/vk-metal/internal/pressure"
	"github.com/vk-metal/vk-metal/provider"
	"github.com/vk-metal/vk-metal/systemd"
)

// kubeletCounters are what is counted on behalf of those who watch a kubelet.
type kubeletCounters struct {
	operations *kubeletmetrics.Operations
	starts     *kubeletmetrics.Starts
	node       *kubeletmetrics.Node
}

// newKubeletCounters makes and registers them.
func (a *agent) newKubeletCounters() {
	k := kubeletCounters{kubeletmetrics.NewOperations(), kubeletmetrics.NewStarts(), kubeletmetrics.NewNode()}
	a.metrics.MustRegister(k.operations.Collectors()...)
	a.metrics.MustRegister(k.starts.Collectors()...)
	a.metrics.MustRegister(k.node.Collectors()...)
	a.metrics.MustRegister(prometheus.NewGaugeFunc(
		prometheus.GaugeOpts{Name: "kubelet_cgroup_version", Help: "[ALPHA] cgroup version on the hosts."},
		func() float64 { return float64(cgroupVersion()) }))
	a.kubelet = k
}

// cgroupVersion is 0 where it cannot be told.
func cgroupVersion() int {
	version, err := systemd.CgroupVersion()
	if err != nil {
		return 0
	}
	return version
}

// watch counts what the provider does through its dependencies.
func (k kubeletCounters) watch(deps provider.Deps) provider.Deps {
	deps.Runtime = k.operations.Runtime(deps.Runtime)
	deps.Recorder = k.starts.Recorder(deps.Recorder)
	return deps
}

func (k kubeletCounters) pulled(size int64, took time.Duration) { k.node.Pulled(size, took) }

func (k kubeletCounters) evicted(s pressure.Signal) { k.node.Evicted(string(s)) }

// watchExpiry tells how long the node's certificates are valid yet.
func (a *agent) watchExpiry(identity *bootstrap.Identity) {
	if identity != nil {
		a.metrics.MustRegister(kubeletmetrics.NewExpiry("client", identity.Expires))
	}
	a.metrics.MustRegister(kubeletmetrics.NewExpiry("server", func() time.Time {
		if a.serving == nil {
			return time.Time{}
		}
		return a.serving.Expires()
	}))
}
