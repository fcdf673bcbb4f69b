package controlplane

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestRoutesTo(t *testing.T) {
	internal := func(addresses ...string) []corev1.NodeAddress {
		list := []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "metal-0"}}
		for _, address := range addresses {
			list = append(list, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: address})
		}
		return list
	}
	cases := map[string]struct {
		cidrs     []string
		addresses []corev1.NodeAddress
		want      []string
	}{
		"dual stack":  {[]string{"10.244.1.0/24", "fd00:244:0:1::/64"}, internal("10.9.0.5", "fd00:9::5"), []string{"10.244.1.0/24 via 10.9.0.5", "fd00:244:0:1::/64 via fd00:9::5"}},
		"no IPv6":     {[]string{"10.244.1.0/24", "fd00:244:0:1::/64"}, internal("10.9.0.5"), []string{"10.244.1.0/24 via 10.9.0.5"}},
		"no address":  {[]string{"10.244.1.0/24"}, internal(), nil},
		"no range":    {nil, internal("10.9.0.5"), nil},
		"broken CIDR": {[]string{"nonsense"}, internal("10.9.0.5"), nil},
	}
	for name, c := range cases {
		node := &corev1.Node{Spec: corev1.NodeSpec{PodCIDRs: c.cidrs}, Status: corev1.NodeStatus{Addresses: c.addresses}}
		var got []string
		for _, route := range routesTo(node) {
			got = append(got, fmt.Sprintf("%s via %s", route.Dst, route.Gw))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}
