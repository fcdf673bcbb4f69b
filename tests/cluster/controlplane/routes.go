package controlplane

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// routeProtocol marks the routes that KeepRoutes owns ("ip route show proto 77").
const routeProtocol netlink.RouteProtocol = 77

// KeepRoutes keeps, in the network namespace that it runs in, a route to each node's
// pods until ctx ends: the API server calls webhooks and aggregated servers by pod
// IP. On a real control plane an agent or the network does it.
func KeepRoutes(ctx context.Context, client kubernetes.Interface, log *slog.Logger) error {
	factory := informers.NewSharedInformerFactory(client, 30*time.Second)
	informer := factory.Core().V1().Nodes().Informer()
	set := func(object any) {
		node, ok := object.(*corev1.Node)
		if !ok {
			return
		}
		for _, route := range routesTo(node) {
			if err := netlink.RouteReplace(&route); err != nil {
				log.Warn("route to pods not set", "node", node.Name, "route", route.String(), "error", err)
			}
		}
	}
	remove := func(object any) {
		if tombstone, ok := object.(cache.DeletedFinalStateUnknown); ok {
			object = tombstone.Obj
		}
		node, ok := object.(*corev1.Node)
		if !ok {
			return
		}
		for _, route := range routesTo(node) {
			if err := netlink.RouteDel(&route); err != nil {
				log.Warn("route to pods not removed", "node", node.Name, "route", route.String(), "error", err)
			}
		}
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    set,
		UpdateFunc: func(_, object any) { set(object) },
		DeleteFunc: remove,
	})
	if err != nil {
		return fmt.Errorf("watch nodes: %w", err)
	}
	factory.Start(ctx.Done())
	<-ctx.Done()
	factory.Shutdown()
	return nil
}

// routesTo are the routes to a node's pods, one for each family in which the node has
// both an address and a range.
func routesTo(node *corev1.Node) []netlink.Route {
	var routes []netlink.Route
	for _, cidr := range node.Spec.PodCIDRs {
		_, pods, err := net.ParseCIDR(cidr)
		if err != nil {
			continue
		}
		if gateway := addressOf(node, pods.IP.To4() != nil); gateway != nil {
			routes = append(routes, netlink.Route{Dst: pods, Gw: gateway, Protocol: routeProtocol})
		}
	}
	return routes
}

func addressOf(node *corev1.Node, v4 bool) net.IP {
	for _, address := range node.Status.Addresses {
		ip := net.ParseIP(address.Address)
		if address.Type == corev1.NodeInternalIP && ip != nil && (ip.To4() != nil) == v4 {
			return ip
		}
	}
	return nil
}
