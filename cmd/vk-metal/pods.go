package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"

	"github.com/vk-metal/vk-metal/hostgw"
	"github.com/vk-metal/vk-metal/hostgw/wireguard"
	"github.com/vk-metal/vk-metal/internal/apparmor"
	"github.com/vk-metal/vk-metal/internal/claims"
	"github.com/vk-metal/vk-metal/internal/csi"
	"github.com/vk-metal/vk-metal/internal/devices"
	"github.com/vk-metal/vk-metal/internal/diskuse"
	"github.com/vk-metal/vk-metal/internal/images"
	"github.com/vk-metal/vk-metal/internal/node"
	"github.com/vk-metal/vk-metal/internal/objects"
	"github.com/vk-metal/vk-metal/internal/sandbox"
	"github.com/vk-metal/vk-metal/internal/seccomp"
	"github.com/vk-metal/vk-metal/internal/selinux"
	"github.com/vk-metal/vk-metal/internal/task"
	"github.com/vk-metal/vk-metal/internal/volumes"
	"github.com/vk-metal/vk-metal/netns"
	"github.com/vk-metal/vk-metal/probes"
	"github.com/vk-metal/vk-metal/provider"
	"github.com/vk-metal/vk-metal/systemd"
)

// podParts are what runs pods: everything below the provider, and the provider.
type podParts struct {
	systemd  *systemd.Manager
	network  podNetwork
	own      *netns.Manager // nil where network plugins give pods theirs
	routes   *hostgw.Router
	images   *images.Manager
	logins   *images.CredentialProviders // nil for none
	imageGC  *images.Collector
	probes   *prometheus.Registry
	volumes  *volumes.Manager
	disk     diskuse.Meter // of pods: what volumes, provider and the API know of it
	csi      *csi.Manager
	devices  *devices.Manager
	claims   *claims.Manager
	selinux  *selinux.Host // nil where the host has none
	provider *provider.Provider
}

// openHost opens what does not need the cluster: systemd, the kernel's networks, the image store.
func (a *agent) openHost(ctx context.Context) (err error) {
	launcher := os.Getenv("VK_METAL_LAUNCHER") // for machines under test; empty is the packages' place
	a.pods.selinux = selinux.New(a.g.layout.SELinuxLevels())
	a.pods.systemd, err = systemd.NewManager(ctx, systemd.Options{Layout: a.g.layout, Launcher: launcher, Logger: a.log, Labels: a.pods.selinux != nil})
	if err != nil {
		return err
	}
	if err := a.openNetwork(); err != nil {
		return err
	}
	if err := a.openRoutes(); err != nil {
		return err
	}
	options := imageOptions(a.g.layout, a.cfg)
	options.Logger, options.Pulled = a.log, a.kubelet.pulled
	if registries := a.cfg.Registries; registries.CredentialProviderConfig != "" {
		a.pods.logins, err = images.LoadCredentialProviders(registries.CredentialProviderConfig, registries.CredentialProviderBinDir)
		if err != nil {
			return err
		}
	}
	options.Providers = a.pods.logins
	a.pods.images, err = images.NewManager(options)
	return err
}

// podTasks joins the provider with its surroundings; a.node must be there.
func (a *agent) podTasks(ctx context.Context) ([]task.Task, error) {
	pluginTasks, err := a.newPlugins()
	if err != nil {
		return nil, err
	}
	source := objects.NewSource(ctx, a.client, objects.Options{
		Logger: a.log, Node: a.self,
		Warn: func(pod *corev1.Pod, reason, message string) {
			a.recorder.Event(pod, corev1.EventTypeWarning, reason, message)
		},
	})
	a.pods.logins.UseAccounts(source)
	allocatable := func() corev1.ResourceList { return a.node.Latest().Status.Allocatable }
	a.pods.volumes, err = volumes.NewManager(volumes.Options{
		Layout: a.g.layout, Objects: source, TrustBundles: source, Certificates: source, Claims: volumes.APIClaims{Client: a.client}, CSI: a.pods.csi, Node: a.self, NodeAllocatable: allocatable, Disk: &a.pods.disk, Labels: a.volumeLabels(), Logger: a.log,
	})
	if err != nil {
		return nil, err
	}
	factory := informers.NewSharedInformerFactory(a.client, 0)
	services := factory.Core().V1().Services()
	services.Informer() // registered before Start
	if err := a.newServiceProxy(factory); err != nil {
		return nil, err
	}
	hold, watchEndpoints, err := a.newStopHold(factory)
	if err != nil {
		return nil, err
	}
	bgpTasks, err := a.bgpTasks(factory)
	if err != nil {
		return nil, err
	}
	lanTasks, err := a.lanTasks(factory)
	if err != nil {
		return nil, err
	}
	if err := a.newDNSCache(); err != nil {
		return nil, err
	}
	if err := a.newPolicy(); err != nil {
		return nil, err
	}
	a.pods.probes = prometheus.NewRegistry()
	prober := probes.New(execProber{a.pods.systemd, a.g.layout}, probes.WithRegistry(a.pods.probes))
	armor := apparmor.New(apparmor.Options{})
	podsMemory, podsTasks := a.nodeOptions().Host.PodLimits(a.cfg.Reserved())
	a.pods.provider, err = provider.New(a.kubelet.watch(mutate(provider.Deps{
		NodeName: a.name, Client: a.client, Layout: a.g.layout,
		Runtime: a.pods.systemd, Executor: a.pods.systemd, Usage: a.pods.systemd, Network: a.networkOfPods(), Policy: a.admission(), Readiness: a.readiness(), Images: a.pods.images,
		Volumes: a.pods.volumes, Disk: &a.pods.disk, Objects: source, Probes: prober, Logs: logStreams{a.g.layout, a.cfg.Logs}, Sandbox: sandbox.New(a.g.layout),
		AppArmor: armor, SELinux: a.labels(), Devices: a.pods.devices, Claims: a.pods.claims,
		Services: services.Lister(), Hold: hold, Static: a.staticPods, Recorder: a.recorder, Log: a.log, DNS: a.dns(), HostIPs: a.hostIPs,
		Node: provider.NodeFacts{
			MemoryCapacity: a.nodeOptions().Host.Meminfo()["MemTotal"], Allocatable: allocatable, Self: a.self,
			AppArmor:   armor.Enabled(),
			PodsMemory: podsMemory, PodsTasks: podsTasks,
			Seccomp: seccomp.HostOf(runtime.GOARCH, kernelRelease()), SeccompDefault: a.cfg.SeccompDefault,
			NoUserNamespaces: a.noUserNamespaces(), HugePages: hugePageSizes(a.nodeOptions().Host),
			UnsafeSysctls: a.cfg.AllowedUnsafeSysctls, Pressure: a.pressure, PodPidsLimit: uint64(max(0, a.cfg.PodPidsLimit)),
		},
		StepHook: stepHook(),
	})))
	if err != nil {
		return nil, err
	}
	for _, collector := range a.pods.provider.Collectors() {
		a.metrics.MustRegister(collector)
	}
	a.newImageGC()
	a.newEvictor(ctx)
	return append([]task.Task{
		task.New("services", func(ctx context.Context, ready func()) error {
			factory.Start(ctx.Done())
			ready()
			<-ctx.Done()
			factory.Shutdown()
			return nil
		}),
		task.New("service-proxy", a.runServiceProxy),
		task.New("endpoints", watchEndpoints),
		task.New("network-policy", a.runPolicy),
		task.New("dns-cache", a.runDNSCache),
		task.New("pod-network", func(ctx context.Context, ready func()) error {
			ready()
			defer a.pods.network.Close()
			return a.pods.network.Run(ctx)
		}),
		task.New("node-routes", func(ctx context.Context, ready func()) error {
			ready()
			defer a.pods.routes.Close()
			return a.pods.routes.Run(ctx)
		}),
		task.New("provider", a.runProvider),
		task.New("shutdown", a.runShutdown),
		task.New("image-gc", func(ctx context.Context, ready func()) error {
			ready()
			return a.pods.imageGC.Run(ctx)
		}),
		task.New("eviction", func(ctx context.Context, ready func()) error {
			ready()
			return a.evictor.Run(ctx)
		}),
		task.New("volumes", func(ctx context.Context, ready func()) error {
			ready()
			return a.pods.volumes.Run(ctx)
		}),
	}, slices.Concat(bgpTasks, pluginTasks, lanTasks, a.encryptionTasks())...), nil
}

// kernelRelease is uname -r.
func kernelRelease() string {
	data, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(data))
}

// self is our own Node as it was last seen, nil before.
func (a *agent) self() *corev1.Node {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.selfNode
}

// newImageGC makes what keeps the image file system below its thresholds.
func (a *agent) newImageGC() {
	a.pods.imageGC = images.NewCollector(a.pods.images, images.CollectorOptions{
		High: a.cfg.ImageGC.HighThresholdPercent, Low: a.cfg.ImageGC.LowThresholdPercent, MinAge: a.cfg.ImageGC.MinimumAge,
		InUse: a.pods.provider.ImagesInUse,
		Event: func(reason, message string) {
			a.recorder.Event(a.nodeReference(), corev1.EventTypeWarning, reason, message)
		},
		Log: a.log,
	})
}

// providerPatience is how long the agent waits for the pods before it calls itself ready
// all the same: with the API server down there are none to be had.
const providerPatience = 20 * time.Second

func (a *agent) runProvider(ctx context.Context, ready func()) error {
	go func() {
		select {
		case <-a.pods.provider.Ready():
		case <-time.After(providerPatience):
			a.log.Warn("the pods are not known yet; the API server may be unreachable")
		case <-ctx.Done():
		}
		ready()
	}()
	return a.pods.provider.Run(ctx)
}

func (a *agent) dns() provider.DNSConfig {
	d := provider.DNSConfig{ClusterDomain: a.cfg.ClusterDomain, HostResolvConf: a.cfg.ResolvConf}
	for _, server := range a.cfg.ClusterDNS {
		d.ClusterDNS = append(d.ClusterDNS, server.String())
	}
	return d
}

func (a *agent) hostIPs() []string {
	var ips []string
	for _, addr := range a.addresses {
		ips = append(ips, addr.String())
	}
	return ips
}

// applyNetwork gives the pod network and the routes what is known of our own Node and the others.
func (a *agent) applyNetwork() {
	a.mu.Lock()
	self, peers, told := a.podCIDRs, a.peers, a.peersTold
	known := a.selfTold
	a.mu.Unlock()
	if !known {
		return // without our own podCIDRs the routes that are there would be taken away
	}
	config := netns.Config{
		PodCIDRs: self, ClusterCIDRs: a.cfg.Network.ClusterCIDRs, Masquerade: a.cfg.Network.Masquerade, MTU: a.cfg.Network.MTU,
		Overhead: max(hostgw.Encapsulation(a.cfg.Network.Encapsulation).Overhead(), tunnelOverhead(a.encrypts(), a.addresses)),
	}
	var others []hostgw.Peer
	for _, peer := range peers {
		others = append(others, hostgw.Peer{Name: peer.Name, Addrs: peer.Addrs, PodCIDRs: peer.PodCIDRs, Keys: peer.Annotations[wireguard.Annotation]})
		for _, addr := range peer.Addrs {
			prefix, _ := addr.Prefix(addr.BitLen())
			config.NoMasquerade = append(config.NoMasquerade, prefix)
		}
		if len(a.cfg.Network.ClusterCIDRs) == 0 {
			config.ClusterCIDRs = append(config.ClusterCIDRs, peer.PodCIDRs...)
		}
	}
	if len(a.cfg.Network.ClusterCIDRs) == 0 {
		config.ClusterCIDRs = append(config.ClusterCIDRs, self...)
	}
	if a.pods.own == nil {
		self, others = nil, nil // addresses and routes are the plugins'
	} else if err := a.pods.own.SetConfig(config); err != nil {
		a.log.Error("cannot configure the pod network", "err", err)
	}
	a.pods.routes.SetSelf(self)
	if told {
		if a.cfg.Network.Routing == "BGP" {
			others = nil
		}
		a.pods.routes.SetPeers(others)
	}
	a.encryption.keys.look()
	a.tellBGP()
	a.tellLAN()
	go a.awaitNetwork()
}

// awaitNetwork has the node looked at as soon as the pod network is up, instead of at the
// next interval.
func (a *agent) awaitNetwork() {
	for range 100 {
		if a.pods.network.Ready() == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	a.node.Changed()
}

// setPodCIDRs takes the Node's podCIDRs unless the configuration has others.
func (a *agent) setPodCIDRs(self *corev1.Node) error {
	cidrs := a.cfg.Network.PodCIDRs
	if len(cidrs) == 0 {
		var err error
		if cidrs, err = node.ParsePodCIDRs(self.Spec.PodCIDRs); err != nil {
			return fmt.Errorf("take podCIDRs from the Node: %w", err)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.podCIDRs, a.selfTold = cidrs, true
	return nil
}
