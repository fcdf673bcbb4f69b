package hostgw

import (
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

// PeersFromNodes reads the peers from all Nodes; self, a node's name, is left out. The
// error joins what is wrong with single nodes; such a node keeps what is right, and
// nodes without a podCIDR or an internal address yet are left out without one.
func PeersFromNodes(nodes []*corev1.Node, self string) ([]Peer, error) {
	var peers []Peer
	var errs []error
	for _, n := range nodes {
		if n.Name == self {
			continue
		}
		p := Peer{Name: n.Name}
		for _, a := range n.Status.Addresses {
			if a.Type != corev1.NodeInternalIP {
				continue
			}
			ip, err := netip.ParseAddr(a.Address)
			if err != nil {
				errs = append(errs, fmt.Errorf("read internal address of node %s: %w", n.Name, err))
				continue
			}
			p.Addrs = append(p.Addrs, ip.Unmap().WithZone(""))
		}
		var err error
		if p.PodCIDRs, err = PodCIDRsOf(n); err != nil {
			errs = append(errs, err)
		}
		if len(p.Addrs) > 0 && len(p.PodCIDRs) > 0 {
			peers = append(peers, p)
		}
	}
	return peers, errors.Join(errs...)
}

// PodCIDRsOf reads a node's podCIDRs; the error joins those that are malformed.
func PodCIDRsOf(n *corev1.Node) ([]netip.Prefix, error) {
	cidrs := n.Spec.PodCIDRs
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs = []string{n.Spec.PodCIDR}
	}
	var out []netip.Prefix
	var errs []error
	for _, c := range cidrs {
		p, err := netip.ParsePrefix(c)
		if err == nil {
			err = checkCIDR(p)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("read podCIDR of node %s: %w", n.Name, err))
			continue
		}
		out = append(out, p)
	}
	return out, errors.Join(errs...)
}
