package main

import (
	"log/slog"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"github.com/vk-metal/vk-metal/internal/cadvisor"
	"github.com/vk-metal/vk-metal/internal/hostlogs"
	"github.com/vk-metal/vk-metal/internal/kubeletapi"
	"github.com/vk-metal/vk-metal/internal/kubeletmetrics"
	"github.com/vk-metal/vk-metal/internal/nodestats"
)

// newAPI makes the server of the node's API.
func (a *agent) newAPI() (*kubeletapi.Server, error) {
	backend := apiBackend{a.pods.provider}
	host := a.nodeOptions().Host
	source := figures{host: host, systemd: a.pods.systemd, pods: backend.Pods, volumes: a.pods.volumes, layout: a.g.layout, disk: &a.pods.disk}
	a.metrics.MustRegister(kubeletmetrics.NewPods(a.name, backend.Pods))
	cadvisorMetrics := prometheus.NewRegistry()
	cadvisorMetrics.MustRegister(cadvisor.NewCollector(source))
	return kubeletapi.New(kubeletapi.Options{
		NodeName:    a.name,
		Listen:      netip.AddrPortFrom(a.cfg.Listen.Address, uint16(a.cfg.Listen.Port)),
		ClientCA:    a.cfg.ClusterCA,
		Certificate: a.serving.Certificate,
		Client:      a.client,
		Pods:        backend,
		Streams:     backend,
		Stats:       nodestats.New(a.name, host.BootTime(), source),
		Metrics:     a.metrics,
		Cadvisor:    cadvisorMetrics,
		Probes:      a.pods.probes,
		Health:      a.alive,
		Config:      a.configz(),
		Logs:        hostlogs.New(hostlogs.Options{Dir: "/var/log", Query: a.cfg.SystemLogQuery, Units: ownUnits}),
		Verbosity:   a.setVerbosity,
		Log:         a.log,
	})
}

// ownUnits are what a client means who asks for the logs of the node's kubelet.
var ownUnits = map[string][]string{"kubelet": {"vk-metal"}}

// debugVerbosity is klog's level from which on a kubelet tells of its workings.
const debugVerbosity = 4

// setVerbosity logs more, or again as configured, until the agent is restarted or its
// configuration reloaded.
func (a *agent) setVerbosity(level int) {
	if level >= debugVerbosity {
		a.level.Set(slog.LevelDebug)
	} else {
		a.level.Set(a.cfg.LogLevel)
	}
	a.log.Info("log level changed by a client of the node's API", "logLevel", a.level.Level())
}

// configz tells our settings in the kubelet's terms, for tools that ask a kubelet.
func (a *agent) configz() *kubeletconfig.KubeletConfiguration {
	yes, no := true, false
	c := &kubeletconfig.KubeletConfiguration{
		TypeMeta:             metav1.TypeMeta{Kind: "KubeletConfiguration", APIVersion: kubeletconfig.SchemeGroupVersion.String()},
		Address:              a.cfg.Listen.Address.String(),
		Port:                 int32(a.cfg.Listen.Port),
		CgroupDriver:         "systemd",
		CgroupsPerQOS:        &yes,
		ClusterDomain:        a.cfg.ClusterDomain,
		ClusterDNS:           a.dns().ClusterDNS,
		MaxPods:              int32(a.cfg.MaxPods),
		RotateCertificates:   true,
		ServerTLSBootstrap:   true,
		FailCgroupV1:         &no,
		ContainerLogMaxFiles: ptr(int32(a.cfg.Logs.MaxFiles)),
		KubeReserved:         resourceStrings(a.cfg.KubeReserved),
		SystemReserved:       resourceStrings(a.cfg.SystemReserved),
		KubeAPIQPS:           ptr(int32(a.cfg.KubeAPIQPS)),
		KubeAPIBurst:         int32(a.cfg.KubeAPIBurst),
		RegisterWithTaints:   a.cfg.RegisterWithTaints,
		ContainerLogMaxSize:  resource.NewQuantity(a.cfg.Logs.MaxSize, resource.BinarySI).String(),
		PodPidsLimit:         ptr(int64(a.cfg.PodPidsLimit)),
		SeccompDefault:       ptr(a.cfg.SeccompDefault),
		AllowedUnsafeSysctls: a.cfg.AllowedUnsafeSysctls,
		StaticPodPath:        a.cfg.StaticPodPath,
		ProviderID:           a.cfg.ProviderID,

		ImageGCHighThresholdPercent: ptr(int32(a.cfg.ImageGC.HighThresholdPercent)),
		ImageGCLowThresholdPercent:  ptr(int32(a.cfg.ImageGC.LowThresholdPercent)),
		ImageMinimumGCAge:           metav1.Duration{Duration: a.cfg.ImageGC.MinimumAge},

		ShutdownGracePeriod:             metav1.Duration{Duration: a.cfg.Shutdown.GracePeriod},
		ShutdownGracePeriodCriticalPods: metav1.Duration{Duration: a.cfg.Shutdown.CriticalPods},

		EnableServer: &yes, EnableDebuggingHandlers: &yes, EnableProfilingHandler: &yes, EnableDebugFlagsHandler: &yes,
		EnableSystemLogHandler: &yes, EnableSystemLogQuery: &a.cfg.SystemLogQuery, EnableControllerAttachDetach: &yes,
		EnforceNodeAllocatable: []string{"pods"},
	}
	a.tellEviction(c)
	c.Authentication.Anonymous.Enabled = &no
	c.Authentication.Webhook.Enabled = &yes
	c.Authentication.X509.ClientCAFile = a.cfg.ClusterCA
	c.Authorization.Mode = kubeletconfig.KubeletAuthorizationModeWebhook
	if a.cfg.ResolvConf != "" {
		c.ResolverConfig = &a.cfg.ResolvConf
	}
	return c
}

func resourceStrings(list corev1.ResourceList) map[string]string {
	out := map[string]string{}
	for name, quantity := range list {
		out[string(name)] = quantity.String()
	}
	return out
}

func ptr[T any](v T) *T { return &v }
