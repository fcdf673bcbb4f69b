package netns

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// firewall is a host's own firewall, and what docs/firewalls.md says to tell it.
type firewall struct {
	file string
	// blocks is what it stops before: from and to are of outside, pod, other pod.
	blocks [2]string
	rules  []string
	ipv6   bool
}

// podGroup is the number in the documented rules.
var podGroup = strconv.Itoa(LinkGroup)

var firewalls = []firewall{
	{
		file: "docker", blocks: [2]string{"pod", "outside"},
		rules: []string{"insert rule ip filter DOCKER-USER iifgroup " + podGroup + " accept", "insert rule ip filter DOCKER-USER oifgroup " + podGroup + " accept"},
	},
	{
		file: "ufw", blocks: [2]string{"pod", "outside"}, ipv6: true,
		rules: []string{
			"insert rule ip filter ufw-before-forward iifgroup " + podGroup + " accept", "insert rule ip filter ufw-before-forward oifgroup " + podGroup + " accept",
			"insert rule ip filter ufw-before-input iifgroup " + podGroup + " accept",
			"insert rule ip6 filter ufw6-before-forward iifgroup " + podGroup + " accept", "insert rule ip6 filter ufw6-before-forward oifgroup " + podGroup + " accept",
			"insert rule ip6 filter ufw6-before-input iifgroup " + podGroup + " accept",
		},
	},
	{
		// firewall-cmd --zone=trusted --add-source of the pods' ranges makes these.
		file: "firewalld", blocks: [2]string{"pod", "other pod"}, ipv6: true,
		rules: []string{
			"insert rule inet firewalld filter_INPUT_ZONES ip saddr 10.244.0.0/16 goto filter_IN_trusted",
			"insert rule inet firewalld filter_INPUT_ZONES ip6 saddr fd00:244::/32 goto filter_IN_trusted",
			"insert rule inet firewalld filter_FORWARD_ZONES ip saddr 10.244.0.0/16 goto filter_FWD_trusted",
			"insert rule inet firewalld filter_FORWARD_ZONES ip6 saddr fd00:244::/32 goto filter_FWD_trusted",
		},
	},
}

// TestFirewalls: on a host with a firewall of its own pods' traffic passes with the
// documented rules, and not without them; what is the firewall's stays as it is.
func TestFirewalls(t *testing.T) {
	for _, f := range firewalls {
		t.Run(f.file, func(t *testing.T) { f.test(t) })
	}
}

func (f *firewall) test(t *testing.T) {
	w := newWorld(t)
	data, err := os.ReadFile(filepath.Join("testdata", f.file+".nft"))
	must(t, err)
	file := filepath.Join(w.dir, "rules")
	must(t, os.WriteFile(file, data, 0o600))
	w.run(w.node, "nft", "-f", file)
	m := w.manager()
	stop := w.start(m, Config{PodCIDRs: dualStack, ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/32")}, Masquerade: true})
	a, b := setUp(t, m, "a", HostPort{Protocol: "TCP", HostPort: 8080, ContainerPort: 80}), setUp(t, m, "b")
	// A pod of another node, behind the outside host.
	w.run(w.out, "ip", "addr", "add", "10.244.9.1/32", "dev", "lo")
	w.run(w.out, "ip", "route", "add", "10.244.1.0/24", "via", nodeIP4.String())
	w.run(w.node, "ip", "route", "add", "10.244.9.0/24", "via", outIP4.String())
	podA, podB := w.pod(a.Path), w.pod(b.Path)
	serveOn := func(ns *linuxns.NS, a netip.Addr, port uint16) {
		serve(t, ns, "tcp", netip.AddrPortFrom(a, port).String())
	}
	places := map[string]struct {
		ns *linuxns.NS
		v4 netip.Addr
		v6 netip.Addr
	}{
		"outside": {w.out, outIP4, outIP6}, "pod": {podA, a.IPs[0], a.IPs[1]}, "other pod": {podB, b.IPs[0], b.IPs[1]}, "node": {w.node, nodeIP4, nodeIP6},
		"another node's pod": {w.out, netip.MustParseAddr("10.244.9.1"), netip.Addr{}},
	}
	for _, p := range places {
		serveOn(p.ns, p.v4, 80)
		if p.v6.IsValid() {
			serveOn(p.ns, p.v6, 80)
		}
	}
	to := func(name string) netip.AddrPort { return netip.AddrPortFrom(places[name].v4, 80) }
	if _, err := askFrom(places[f.blocks[0]].ns, "tcp", nil, to(f.blocks[1]), silence); err == nil {
		t.Errorf("%s reaches %s without the documented rules", f.blocks[0], f.blocks[1])
	}
	for _, rule := range f.rules {
		w.run(w.node, append([]string{"nft"}, strings.Fields(rule)...)...)
	}
	before := w.others()
	for _, way := range [][2]string{{"pod", "outside"}, {"pod", "other pod"}, {"pod", "node"}, {"node", "pod"}, {"pod", "another node's pod"}} {
		if _, err := ask(places[way[0]].ns, "tcp", to(way[1])); err != nil {
			t.Errorf("%s to %s: %v", way[0], way[1], err)
		}
		if v6 := places[way[1]].v6; f.ipv6 && v6.IsValid() {
			if _, err := ask(places[way[0]].ns, "tcp", netip.AddrPortFrom(v6, 80)); err != nil {
				t.Errorf("%s to %s by IPv6: %v", way[0], way[1], err)
			}
		}
	}
	seen(t, "a host port from outside", w.out, "tcp", netip.AddrPortFrom(nodeIP4, 8080), outIP4)
	if _, err := askFrom(w.out, "tcp", tcpFrom("10.244.9.1"), to("pod"), patience); err != nil {
		t.Errorf("another node's pod to a pod: %v", err)
	}
	must(t, m.Teardown(t.Context(), "a"))
	must(t, m.Teardown(t.Context(), "b"))
	stop()
	if after := w.others(); after != before {
		t.Errorf("others' rules were\n%s\nand are\n%s", before, after)
	}
}

// others lists the tables that are not ours.
func (w *world) others() string {
	w.t.Helper()
	var out strings.Builder
	for line := range strings.Lines(w.run(w.node, "nft", "list", "tables")) {
		fields := strings.Fields(line)
		if !strings.HasPrefix(fields[2], "vk-metal-") {
			out.WriteString(w.run(w.node, "nft", "list", "table", fields[1], fields[2]))
		}
	}
	return out.String()
}

func tcpFrom(a string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(a)} }
