package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"

	"github.com/vk-metal/vk-metal/hostgw/lan"
	"github.com/vk-metal/vk-metal/internal/node"
	"github.com/vk-metal/vk-metal/internal/task"
)

// lanPart gathers what the Announcer needs, and says on our Node where it announces.
type lanPart struct {
	a         *agent
	announcer *lan.Announcer // nil if the configuration does not ask for it
	wake      chan struct{}  // look at the annotation

	mu       sync.Mutex
	services map[string]lan.Service
	synced   bool   // all Services are known
	subnets  string // for the annotation
	told     bool   // the Announcer has told them
}

// lanTasks makes the Announcer and what feeds it. Without it only an annotation of before
// is taken away.
func (a *agent) lanTasks(factory informers.SharedInformerFactory) ([]task.Task, error) {
	p := &lanPart{a: a, wake: make(chan struct{}, 1), services: map[string]lan.Service{}}
	tasks := []task.Task{task.New("lan-annotation", p.keepAnnotation)}
	if a.cfg.Network.AnnounceLAN {
		var err error
		p.announcer, err = lan.New(lan.Options{NodeName: a.name, Interfaces: a.cfg.Network.LANInterfaces, Subnets: p.setSubnets, Log: a.log})
		if err != nil {
			return nil, err
		}
		if err := followServices(factory, p.service, p.servicesKnown); err != nil {
			return nil, err
		}
		a.metrics.MustRegister(p.announcer)
		tasks = append(tasks, task.New("lan", func(ctx context.Context, ready func()) error {
			ready()
			return p.announcer.Run(ctx)
		}))
	}
	a.mu.Lock()
	a.lan = p
	a.mu.Unlock()
	return tasks, nil
}

// tellLAN gives the Announcer what is known; nothing before all of it is: a node that does
// not see the others would announce everything.
func (a *agent) tellLAN() {
	a.mu.Lock()
	p, self, peers := a.lan, a.selfNode, a.peers
	known := self != nil && a.peersTold && a.peersError == nil
	a.mu.Unlock()
	if p == nil {
		return
	}
	p.look()
	if p.announcer == nil || !known {
		return
	}
	in := lan.Inputs{Nodes: []lan.Node{{Name: a.name, Addrs: a.addresses, Ready: node.IsReady(self), Excluded: excludedFromLoadBalancers(self.Labels)}}}
	for _, peer := range peers {
		in.Nodes = append(in.Nodes, lan.Node{
			Name: peer.Name, Addrs: peer.Addrs, Ready: peer.Ready, Excluded: excludedFromLoadBalancers(peer.Labels),
			Subnets: lan.ParseSubnets(peer.Annotations[lan.AnnotationSubnets]),
		})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.synced {
		return
	}
	for _, s := range p.services {
		in.Services = append(in.Services, s)
	}
	p.announcer.Set(in)
}

func excludedFromLoadBalancers(labels map[string]string) bool {
	_, yes := labels[corev1.LabelNodeExcludeBalancers]
	return yes
}

// service takes one Service's state; nil is gone.
func (p *lanPart) service(name string, s *corev1.Service, list []*discoveryv1.EndpointSlice) {
	var now lan.Service
	told := false
	if s != nil {
		now, told = lan.ServiceOf(s, list)
	}
	p.mu.Lock()
	changed := keep(p.services, name, now, told)
	p.mu.Unlock()
	if changed {
		p.a.tellLAN()
	}
}

func (p *lanPart) servicesKnown() {
	p.mu.Lock()
	p.synced = true
	p.mu.Unlock()
	p.a.tellLAN()
}

func (p *lanPart) setSubnets(list []netip.Prefix) {
	p.mu.Lock()
	p.subnets, p.told = lan.FormatSubnets(list), true
	p.mu.Unlock()
	p.look()
}

func (p *lanPart) look() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// annotationRetry is how long a refused patch of our Node waits.
const annotationRetry = 5 * time.Second

// keepAnnotation keeps the annotation of our Node as the links are, until ctx ends.
func (p *lanPart) keepAnnotation(ctx context.Context, ready func()) error {
	ready()
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-again:
		}
		again = nil
		if err := p.annotate(ctx); err != nil && ctx.Err() == nil {
			p.a.log.Warn("cannot tell the other nodes where this one announces addresses", "err", err)
			again = time.After(annotationRetry)
		}
	}
}

func (p *lanPart) annotate(ctx context.Context) error {
	self := p.a.self()
	p.mu.Lock()
	want, told := p.subnets, p.told
	p.mu.Unlock()
	if p.announcer != nil && !told || self == nil || self.Annotations[lan.AnnotationSubnets] == want {
		return nil
	}
	var value any
	if want != "" {
		value = want
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{lan.AnnotationSubnets: value}}})
	if err != nil {
		return fmt.Errorf("encode the annotation of the Node: %w", err)
	}
	if _, err := p.a.client.CoreV1().Nodes().Patch(ctx, p.a.name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("annotate the Node: %w", err)
	}
	return nil
}
