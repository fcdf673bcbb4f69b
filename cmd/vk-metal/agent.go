package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	sddbus "github.com/coreos/go-systemd/v22/dbus"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/vk-metal/vk-metal/internal/apiclient"
	"github.com/vk-metal/vk-metal/internal/bootstrap"
	"github.com/vk-metal/vk-metal/internal/config"
	"github.com/vk-metal/vk-metal/internal/dnscache"
	"github.com/vk-metal/vk-metal/internal/evictor"
	"github.com/vk-metal/vk-metal/internal/node"
	"github.com/vk-metal/vk-metal/internal/policy"
	"github.com/vk-metal/vk-metal/internal/services"
	"github.com/vk-metal/vk-metal/internal/task"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

// agent joins the parts. Its fields are set in the order of the methods below.
type agent struct {
	g    *globals
	cfg  config.Config
	name string
	log  *slog.Logger
	// level is how much is logged.
	level *slog.LevelVar
	// metrics are this agent's own, beside those of the process.
	metrics *prometheus.Registry
	kubelet kubeletCounters

	api    *apiclient.Client
	client kubernetes.Interface
	// eventClient has limits of its own: statuses and leases do not wait for events.
	eventClient kubernetes.Interface

	addresses  []netip.Addr
	recorder   record.EventRecorder
	serving    *bootstrap.Serving
	node       *node.Node
	watcher    *node.Watcher
	pods       podParts
	proxy      *services.Proxy // nil if somebody else makes Services work
	bgp        *bgpPart        // nil without a configuration of BGP
	lan        *lanPart        // announces addresses of load balancers
	dnsCache   *dnscache.Cache // nil without
	encryption encryption
	evictor    *evictor.Evictor
	policy     *policy.Controller // nil if nobody or somebody else enforces network policies

	mu         sync.Mutex
	peersError error
	podCIDRs   []netip.Prefix
	selfTold   bool
	selfNode   *corev1.Node
	peers      []node.Peer
	peersTold  bool
	version    string // of systemd
	versionAt  time.Time
}

// connect makes the API client: from a kubeconfig, or with a certificate of our own, which
// is then returned.
func (a *agent) connect() (*bootstrap.Identity, error) {
	if a.cfg.Kubeconfig != "" {
		client, err := apiclient.FromKubeconfig(a.cfg.Kubeconfig, a.cfg.APIServers, a.log)
		if err != nil {
			return nil, err
		}
		return nil, a.useClient(client)
	}
	ca, err := apiclient.LoadCA(a.cfg.ClusterCA)
	if err != nil {
		return nil, err
	}
	identity, err := bootstrap.NewIdentity(bootstrap.IdentityOptions{
		NodeName: a.name, Servers: a.cfg.APIServers, CA: ca, Dir: a.g.layout.PKI(),
		BootstrapKubeconfig: a.cfg.BootstrapKubeconfig, Log: a.log,
	})
	if err != nil {
		return nil, err
	}
	return identity, a.useClient(identity.Client())
}

func (a *agent) useClient(client *apiclient.Client) (err error) {
	a.api = client
	config := client.RESTConfig()
	if a.eventClient, err = kubernetes.NewForConfig(config); err == nil {
		config.QPS, config.Burst = float32(a.cfg.KubeAPIQPS), a.cfg.KubeAPIBurst
		a.client, err = kubernetes.NewForConfig(config)
	}
	if err != nil {
		return fmt.Errorf("make API client: %w", err)
	}
	return nil
}

// parts makes every part of the agent, in the order in which they need one another.
func (a *agent) parts(ctx context.Context) ([]task.Task, error) {
	a.newKubeletCounters()
	events := a.events()
	tasks := []task.Task{events}
	if err := a.findAddresses(); err != nil {
		return nil, err
	}
	if err := a.openHost(ctx); err != nil {
		return nil, err
	}
	var err error
	a.serving, err = bootstrap.NewServing(bootstrap.ServingOptions{
		NodeName: a.name, Names: a.servingNames, Dir: a.g.layout.PKI(), Client: a.client, Log: a.log,
	})
	if err != nil {
		return nil, err
	}
	tasks = append(tasks, task.New("serving-certificate", func(ctx context.Context, ready func()) error {
		ready()
		return a.serving.Run(ctx)
	}))
	if a.node, err = node.New(ctx, a.nodeOptions()); err != nil {
		return nil, err
	}
	a.watcher = node.NewWatcher(node.WatchOptions{
		Client: a.client, Name: a.name, Self: a.selfChanged, Attached: a.retryVolumes, Peers: a.peersChanged, PeersError: a.peersFailed, Log: a.log,
	})
	pods, err := a.podTasks(ctx)
	if err != nil {
		return nil, err
	}
	api, err := a.newAPI()
	if err != nil {
		return nil, err
	}
	tasks = append(tasks, a.node, a.watcher)
	return append(append(tasks, pods...), api), nil
}

// events makes the recorder; events are sent until the end.
func (a *agent) events() task.Task {
	broadcaster := record.NewBroadcaster()
	a.recorder = broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: a.name})
	return task.New("events", func(ctx context.Context, ready func()) error {
		broadcaster.StartRecordingToSink(&eventSink{
			EventSink: &typedcorev1.EventSinkImpl{Interface: a.eventClient.CoreV1().Events("")}, quiet: a.quiet,
		})
		ready()
		<-ctx.Done()
		broadcaster.Shutdown()
		return nil
	})
}

func (a *agent) findAddresses() (err error) {
	a.addresses, err = node.Addresses(a.cfg.NodeIPs, a.cfg.APIServers)
	return err
}

func (a *agent) servingNames() ([]string, []netip.Addr) {
	return []string{a.name}, a.addresses
}

func (a *agent) nodeOptions() node.Options {
	return node.Options{
		Name: a.name, Client: a.client,
		Host:       node.Host{Root: "/", Storage: a.g.layout.Lib, Images: a.g.layout.Images()},
		Labels:     a.cfg.NodeLabels,
		Taints:     a.cfg.RegisterWithTaints,
		ProviderID: a.cfg.ProviderID,
		CgroupV1:   cgroupVersion() == 1,
		Reserved:   a.cfg.Reserved(),
		MaxPods:    a.cfg.MaxPods,
		Thresholds: a.cfg.Eviction.Settings().Thresholds,
		Pressure:   a.pressure,
		Port:       a.cfg.Listen.Port,
		Addresses: func() ([]netip.Addr, error) {
			return a.addresses, nil
		},
		SystemdVersion: a.systemdVersion,
		Images:         a.pods.images.List,
		VolumesInUse:   a.volumesInUse,
		Devices:        a.deviceResources,
		Checks:         a.checks(),
		Conditions:     a.conditions,
		Handlers:       podplan.Handlers(),
		UserNamespaces: a.noUserNamespaces() == "",
		Event:          func(kind, reason, message string) { a.recorder.Event(a.nodeReference(), kind, reason, message) },
		Log:            a.log,
	}
}

// checks are what must hold for the node to be Ready.
func (a *agent) checks() []node.Check {
	return []node.Check{
		{Name: "systemd", Run: func(ctx context.Context) error {
			_, err := a.pods.systemd.ListSlices(ctx)
			return err
		}},
		{Name: "container runtime network", Run: func(context.Context) error { return a.pods.network.Ready() }},
		{Name: "encryption", Run: a.encryptionReady},
		{Name: "log writer", Run: logWriterRuns},
		{Run: a.stays},
	}
}

// conditions are those of our own: whether the other nodes can be seen, and their pods be
// spoken to as it is demanded.
func (a *agent) conditions() []corev1.NodeCondition {
	c := corev1.NodeCondition{
		Type: "PeerRoutesReady", Status: corev1.ConditionTrue, Reason: "PeersKnown", Message: "the other nodes are known",
	}
	a.mu.Lock()
	err := a.peersError
	a.mu.Unlock()
	if err != nil {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, "PeersForbidden", err.Error()
	} else if nodes := a.notEncrypted(); len(nodes) > 0 {
		c.Status, c.Reason = corev1.ConditionFalse, "PeersNotEncrypted"
		c.Message = fmt.Sprintf("network.encryption is Required and there is no tunnel to %d nodes (vk-metal encryption says why): %s", len(nodes), strings.Join(nodes[:min(len(nodes), 5)], ", "))
	}
	return append([]corev1.NodeCondition{c}, a.networkUnavailable()...)
}

// selfChanged follows our own Node: deleted, or its podCIDRs known.
func (a *agent) selfChanged(self *corev1.Node) {
	if self == nil {
		a.node.Deleted()
		return
	}
	a.mu.Lock()
	a.selfNode = self
	a.mu.Unlock()
	a.node.Schedulable(!self.Spec.Unschedulable)
	if err := a.setPodCIDRs(self); err != nil {
		a.log.Error("cannot use our own Node", "err", err)
		return
	}
	a.applyNetwork()
	a.tellServiceProxy(self)
}

// peersChanged follows the other Nodes.
func (a *agent) peersChanged(peers []node.Peer) {
	a.log.Info("other nodes changed", "count", len(peers))
	a.mu.Lock()
	a.peers, a.peersTold = peers, true
	a.mu.Unlock()
	a.applyNetwork()
}

// peersFailed tells, once, that there will be no routes to other nodes' pods.
func (a *agent) peersFailed(err error) {
	a.mu.Lock()
	a.peersError = err
	a.mu.Unlock()
	if err != nil {
		a.log.Error("cannot see the other nodes", "err", err)
		a.recorder.Event(a.nodeReference(), corev1.EventTypeWarning, "PeersForbidden", err.Error())
	}
	a.node.Changed()
}

// nodeReference is the Node in events; a kubelet uses the name for the UID.
func (a *agent) nodeReference() *corev1.ObjectReference {
	return &corev1.ObjectReference{Kind: "Node", Name: a.name, UID: types.UID(a.name)}
}

// alive is the watchdog's question to every part that can tell.
func (a *agent) alive() error {
	for _, part := range []struct {
		name  string
		alive func() error
	}{
		{"node", a.node.Alive}, {"systemd", a.pods.systemd.Alive}, {"provider", a.pods.provider.Alive},
	} {
		if err := part.alive(); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

// versionAge is how long systemd's version is believed: an upgrade re-executes it.
const versionAge = 5 * time.Minute

// systemdVersion is PID 1's version, "" while it was never told.
func (a *agent) systemdVersion(ctx context.Context) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.versionAt) < versionAge {
		return a.version
	}
	conn, err := sddbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return a.version
	}
	defer conn.Close()
	if text, err := conn.GetManagerProperty("Version"); err == nil {
		a.version, a.versionAt = strings.Trim(text, `"`), time.Now()
	}
	return a.version
}

// logWriterRuns asks systemd for vk-metal-log.service: without it no container can start.
func logWriterRuns(ctx context.Context) error {
	conn, err := sddbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("connect to systemd: %w", err)
	}
	defer conn.Close()
	property, err := conn.GetUnitPropertyContext(ctx, "vk-metal-log.service", "ActiveState")
	if err != nil {
		return fmt.Errorf("look at vk-metal-log.service: %w", err)
	}
	if state := property.Value.Value(); state != "active" {
		return fmt.Errorf("vk-metal-log.service is %v", state)
	}
	return nil
}
