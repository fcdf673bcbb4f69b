package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	sddbus "github.com/coreos/go-systemd/v22/dbus"
	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/vk-metal/vk-metal/hostgw/bgp"
	"github.com/vk-metal/vk-metal/hostgw/wireguard"
	"github.com/vk-metal/vk-metal/internal/config"
	"github.com/vk-metal/vk-metal/internal/task"
)

// bgpPart gathers what the Speaker needs. It exists only with a configuration of BGP.
type bgpPart struct {
	a       *agent
	speaker *bgp.Speaker

	mu       sync.Mutex
	config   *config.BGP // nil until there is a good one
	services map[string]bgp.Service
	synced   bool // all Services are known
}

// bgpTasks makes the Speaker and what feeds it; nothing without a configuration.
func (a *agent) bgpTasks(factory informers.SharedInformerFactory) ([]task.Task, error) {
	network := &a.cfg.Network
	if !network.BGPEnabled() {
		return nil, nil
	}
	b := &bgpPart{a: a, services: map[string]bgp.Service{}}
	var err error
	b.speaker, err = bgp.New(bgp.Options{
		Dir: a.g.layout.BGP(), Install: network.Routing != "HostGW", Leave: hostStops, Problems: b.problems, Log: a.log,
	})
	if err != nil {
		return nil, err
	}
	if err := followServices(factory, b.service, b.servicesKnown); err != nil {
		return nil, err
	}
	a.metrics.MustRegister(b.speaker)
	a.mu.Lock()
	a.bgp = b
	a.mu.Unlock()
	source := task.New("bgp-config", b.followFile)
	if network.BGPConfig == "" {
		source = task.New("bgp-config", b.followConfigMap)
	}
	return []task.Task{
		task.New("bgp", func(ctx context.Context, ready func()) error {
			ready()
			return b.speaker.Run(ctx)
		}),
		task.New("bgp-socket", func(ctx context.Context, ready func()) error {
			ready()
			return serveBGP(ctx, a.g.layout.BGPSocket(), b.speaker, a.log)
		}),
		source,
	}, nil
}

// hostStops says whether the whole host is being shut down.
func hostStops() bool {
	conn, err := sddbus.NewSystemdConnectionContext(context.Background())
	if err != nil {
		return false
	}
	defer conn.Close()
	state, err := conn.GetManagerProperty("SystemState")
	return err == nil && strings.Trim(state, `"`) == "stopping"
}

// tellBGP gives the Speaker what is known. Before our own Node, the others, a configuration
// and the Services are known it is told nothing, so that a start withdraws nothing.
func (a *agent) tellBGP() {
	a.mu.Lock()
	b, self := a.bgp, a.selfNode
	known := a.selfTold && self != nil && (a.peersTold || a.peersError != nil)
	cidrs, peers := a.podCIDRs, a.peers
	a.mu.Unlock()
	if b == nil || !known {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.config == nil || !b.synced && len(b.config.Advertise.Services) > 0 {
		return
	}
	in := &bgp.Inputs{Config: *b.config, Self: bgp.Node{
		Name: a.name, Addrs: a.addresses, PodCIDRs: cidrs, Labels: self.Labels, Annotations: self.Annotations,
	}}
	for _, p := range peers {
		if a.mustEncrypt() || a.encrypts() && p.Annotations[wireguard.Annotation] != "" {
			in.Encrypted = append(in.Encrypted, p.PodCIDRs...)
		}
		in.Others = append(in.Others, bgp.Node{Name: p.Name, Addrs: p.Addrs, PodCIDRs: p.PodCIDRs, Labels: p.Labels, Annotations: p.Annotations})
	}
	if a.mustEncrypt() {
		in.Encrypted = append(in.Encrypted, a.cfg.Network.ClusterCIDRs...)
	}
	for _, s := range b.services {
		in.Services = append(in.Services, s)
	}
	slices.SortFunc(in.Services, func(x, y bgp.Service) int { return strings.Compare(x.Name, y.Name) })
	b.speaker.Set(in)
}

// problems reports what the Speaker cannot use: mistakes in annotations belong to the Node.
func (b *bgpPart) problems(list []bgp.Problem) {
	for _, p := range list {
		b.a.log.Warn("BGP cannot use all that it is given", "node", p.Node, "problem", p.Text)
		if p.Node == "" || p.Node == b.a.name {
			b.a.recorder.Event(b.a.nodeReference(), corev1.EventTypeWarning, "BGPInvalid", p.String())
		}
	}
}

// use takes a configuration, or says what is wrong with it and keeps the one before.
func (b *bgpPart) use(c config.BGP, err error) {
	if err != nil {
		b.a.log.Error("cannot use the BGP configuration, the one before stays", "err", err)
		b.a.recorder.Event(b.a.nodeReference(), corev1.EventTypeWarning, "BGPConfigInvalid", err.Error())
		return
	}
	b.mu.Lock()
	same := b.config != nil && reflect.DeepEqual(*b.config, c)
	b.config = &c
	b.mu.Unlock()
	if !same {
		b.a.log.Info("BGP configuration read", "asn", c.ASN, "peers", len(c.Peers), "mesh", c.Mesh)
	}
	b.a.tellBGP() // also with the same: password files may have changed
}

// followFile reads the configuration file and reads it again when it changes. That it is
// missing is a mistake, not a wish for no BGP.
func (b *bgpPart) followFile(ctx context.Context, ready func()) error {
	ready()
	path := b.a.cfg.Network.BGPConfig
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	defer w.Close()
	if err := w.Add(filepath.Dir(path)); err != nil { // the directory: editors put a new file in place
		return fmt.Errorf("watch the directory of %s: %w", path, err)
	}
	b.use(config.LoadBGP(path))
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-w.Errors:
			b.a.log.Warn("changes of the BGP configuration may have been missed", "err", err)
		case e := <-w.Events:
			if filepath.Clean(e.Name) != path || e.Has(fsnotify.Chmod) && !e.Has(fsnotify.Write) {
				continue
			}
			settleFile(ctx, w)
			if _, err := os.Stat(path); err == nil {
				b.use(config.LoadBGP(path))
			}
		}
	}
}

// settleFile waits until a file that is being written has been quiet for a moment.
func settleFile(ctx context.Context, w *fsnotify.Watcher) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.Events:
		case <-time.After(100 * time.Millisecond):
			return
		}
	}
}

// bgpKey is the key of the ConfigMap that holds the configuration.
const bgpKey = "bgp.yaml"

// followConfigMap watches one ConfigMap. Deleting it ends BGP on all nodes.
func (b *bgpPart) followConfigMap(ctx context.Context, ready func()) error {
	ready()
	ref := b.a.cfg.Network.BGPConfigMap
	namespace, name, _ := strings.Cut(ref, "/")
	only := fields.OneTermEqualSelector("metadata.name", name)
	lw := cache.NewListWatchFromClient(b.a.client.CoreV1().RESTClient(), "configmaps", namespace, only)
	informer := cache.NewSharedInformer(lw, &corev1.ConfigMap{}, 0)
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { b.useConfigMap(ref, obj) },
		UpdateFunc: func(_, obj any) { b.useConfigMap(ref, obj) },
		DeleteFunc: func(any) {
			b.a.log.Warn("the ConfigMap of the BGP configuration was deleted: BGP ends", "configMap", ref)
			b.mu.Lock()
			b.config = nil
			b.mu.Unlock()
			b.speaker.Set(nil)
		},
	})
	if err != nil {
		return fmt.Errorf("watch ConfigMap %s: %w", ref, err)
	}
	informer.RunWithContext(ctx)
	return nil
}

func (b *bgpPart) useConfigMap(ref string, obj any) {
	m, ok := obj.(*corev1.ConfigMap)
	if !ok {
		return
	}
	text, ok := m.Data[bgpKey]
	if !ok {
		b.use(config.BGP{}, fmt.Errorf("ConfigMap %s has no key %s", ref, bgpKey))
		return
	}
	b.use(config.ParseBGP(ref+"/"+bgpKey, []byte(text)))
}

// service takes one Service's state; nil is gone.
func (b *bgpPart) service(name string, s *corev1.Service, list []*discoveryv1.EndpointSlice) {
	var now bgp.Service
	told := false
	if s != nil {
		now, told = bgp.ServiceOf(s, list, b.a.name)
	}
	b.mu.Lock()
	changed := keep(b.services, name, now, told)
	b.mu.Unlock()
	if changed {
		b.a.tellBGP()
	}
}

func (b *bgpPart) servicesKnown() {
	b.mu.Lock()
	b.synced = true
	b.mu.Unlock()
	b.a.tellBGP()
}
