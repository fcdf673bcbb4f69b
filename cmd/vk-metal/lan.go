package main

import (
	"context"
	"net/netip"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/informers"

	"github.com/vk-metal/vk-metal/hostgw/lan"
	"github.com/vk-metal/vk-metal/internal/node"
	"github.com/vk-metal/vk-metal/internal/task"
)

// lanPart gathers what the Announcer needs, and says on our Node where it announces.
type lanPart struct {
	a         *agent
	announcer *lan.Announcer // nil if the configuration does not ask for it
	subnets   *nodeAnnotation

	mu       sync.Mutex
	services map[string]lan.Service
	synced   bool // all Services are known
}

// lanTasks makes the Announcer and what feeds it. Without it only an annotation of before
// is taken away.
func (a *agent) lanTasks(factory informers.SharedInformerFactory) ([]task.Task, error) {
	p := &lanPart{a: a, subnets: newNodeAnnotation(a, lan.AnnotationSubnets), services: map[string]lan.Service{}}
	tasks := []task.Task{task.New("lan-annotation", p.subnets.keep)}
	if !a.cfg.Network.AnnounceLAN {
		p.subnets.set("")
	}
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
	p.subnets.look()
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

func (p *lanPart) setSubnets(list []netip.Prefix) { p.subnets.set(lan.FormatSubnets(list)) }
