package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"

	"github.com/vk-metal/vk-metal/hostgw/lan"
	"github.com/vk-metal/vk-metal/internal/config"
	"github.com/vk-metal/vk-metal/internal/node"
	"github.com/vk-metal/vk-metal/internal/task"
	"github.com/vk-metal/vk-metal/internal/testcluster"
)

// TestLANFollowsTheCluster: with a node's rights the agent says on its Node where it
// announces, takes that back when it is turned off, and knows the Services. It is given no
// interface: nothing leaves the host.
func TestLANFollowsTheCluster(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{})
	applyRBAC(t, c, "../../packaging/manifests/node-rbac.yaml")
	nodes := c.Admin.CoreV1().Nodes()
	if _, err := nodes.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "metal-1"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	client := c.Client(c.CA.Issue(t, "system:node:metal-1", "system:nodes"))
	start := func(network config.Network) (a *agent, stop func()) {
		a = &agent{
			name: "metal-1", log: slog.New(slog.DiscardHandler), metrics: prometheus.NewRegistry(), client: client, peersTold: true, selfNode: &corev1.Node{},
			cfg: config.Config{Network: network},
		}
		factory := informers.NewSharedInformerFactory(client, 0)
		tasks, err := a.lanTasks(factory)
		if err != nil {
			t.Fatal(err)
		}
		watcher := node.NewWatcher(node.WatchOptions{Client: client, Name: a.name, Log: a.log, Peers: func([]node.Peer) {}, PeersError: func(error) {}, Self: func(self *corev1.Node) {
			a.mu.Lock()
			a.selfNode = self
			a.mu.Unlock()
			a.tellLAN()
		}})
		run, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		factory.Start(run.Done())
		go func() { done <- task.Run(run, a.log, func() {}, append(tasks, watcher)...) }()
		return a, func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			factory.Shutdown()
		}
	}
	annotated := func(want string) {
		t.Helper()
		awaitBGP(t, fmt.Sprintf("the Node says %q", want), func() error {
			n, err := nodes.Get(t.Context(), "metal-1", metav1.GetOptions{})
			if err != nil {
				return err
			}
			if got, there := n.Annotations[lan.AnnotationSubnets]; got != want || there != (want != "") {
				return fmt.Errorf("it says %q", n.Annotations)
			}
			return nil
		})
	}
	a, stop := start(config.Network{AnnounceLAN: true, LANInterfaces: []string{"none"}})
	awaitBGP(t, "the Announcer has told its subnets, of which there are none", func() error {
		a.lan.subnets.mu.Lock()
		defer a.lan.subnets.mu.Unlock()
		if !a.lan.subnets.told {
			return errors.New("it has not")
		}
		return nil
	})
	a.lan.setSubnets([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")})
	annotated("192.0.2.0/24,2001:db8::/64")
	services := c.Admin.CoreV1().Services("default")
	s, err := services.Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.50"}}
	if _, err := services.UpdateStatus(t.Context(), s, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitBGP(t, "the Service is known", func() error {
		a.lan.mu.Lock()
		defer a.lan.mu.Unlock()
		if got := fmt.Sprint(a.lan.services); got != "map[default/s:{default/s [192.0.2.50] false []}]" || !a.lan.synced {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	stop()
	annotated("192.0.2.0/24,2001:db8::/64")
	_, stop = start(config.Network{})
	annotated("")
	stop()
}
