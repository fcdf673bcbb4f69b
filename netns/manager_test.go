package netns

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

func TestSetupListTeardown(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	ctx := context.Background()
	if _, err := m.Setup(ctx, PodNetwork{PodUID: "u1"}); err == nil || !strings.Contains(err.Error(), "no podCIDR") {
		t.Fatalf("Setup before SetConfig: %v", err)
	}
	w.start(m, Config{PodCIDRs: dualStack, Masquerade: true})
	a, err := m.Setup(ctx, PodNetwork{PodUID: "u1", Namespace: "default", Name: "one"})
	must(t, err)
	b, err := m.Setup(ctx, PodNetwork{PodUID: "u2", Namespace: "default", Name: "two"})
	must(t, err)
	again, err := m.Setup(ctx, PodNetwork{PodUID: "u1", Namespace: "default", Name: "one"})
	must(t, err)
	if again.Path != a.Path || again.IPs[0] != a.IPs[0] || again.IPs[1] != a.IPs[1] {
		t.Fatalf("second Setup: %v, first %v", again, a)
	}
	one := w.pod(a.Path)
	two := w.pod(b.Path)
	for i := range a.IPs {
		for _, network := range []string{"tcp", "udp"} {
			outIP, nodeIP := []netip.Addr{outIP4, outIP6}[i], []netip.Addr{nodeIP4, nodeIP6}[i]
			to := func(ns *linuxns.NS, ip netip.Addr) netip.AddrPort {
				return netip.AddrPortFrom(ip, serve(t, ns, network, netip.AddrPortFrom(ip, 0).String()))
			}
			seen(t, "pod to pod", one, network, to(two, b.IPs[i]), a.IPs[i])
			seen(t, "pod to itself", one, network, to(one, a.IPs[i]), a.IPs[i])
			seen(t, "pod to its node", one, network, to(w.node, nodeIP), a.IPs[i])
			seen(t, "node to pod", w.node, network, to(one, a.IPs[i]), nodeIP)
			seen(t, "pod to the world", one, network, to(w.out, outIP), nodeIP)
		}
	}
	w.run(w.node, "nft", "list", "ruleset")
	must(t, m.Teardown(ctx, "u1"))
	must(t, m.Teardown(ctx, "u1"))
	must(t, m.Teardown(ctx, "never"))
	eventually(t, "u1 is gone", gone(m, "u1"))
}
