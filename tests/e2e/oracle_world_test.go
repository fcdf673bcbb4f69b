package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/rig"
)

// place is a network namespace with an address: a pod, a node or the outside host.
type place struct {
	name   string
	node   string // "" is outside
	netns  string
	v4, v6 netip.Addr
}

func (p *place) addr(ipv6 bool) netip.Addr {
	if ipv6 {
		return p.v6
	}
	return p.v4
}

// side is a node, its proxy, and the Services that are asked for there.
type side struct {
	number  int
	proxy   cluster.ServiceProxy
	prefix  string // of its Services' names
	here    string // the node
	there   string
	places  map[string]*place // by role: here-0, here-1, here-client, here-node, there-…, outside
	roles   map[netip.Addr]string
	numbers map[string]byte // of Services, for their addresses
}

func (s *side) place(role string) *place { return s.places[role] }

// absolute is the node that "here" or "there" is.
func (s *side) absolute(relative string) string {
	if relative == "here" {
		return s.here
	}
	return s.there
}

func zoneOf(node string) string { return "zone-of-" + node }

// external is the n-th address of a Service outside of the cluster's ranges.
func (s *side) external(name string, family corev1.IPFamily, n byte) netip.Addr {
	if _, ok := s.numbers[name]; !ok {
		s.numbers[name] = byte(len(s.numbers))
	}
	last := s.numbers[name]*3 + n
	v4, v6 := externalPrefixes(s.number)
	if family == corev1.IPv4Protocol {
		a := v4.Addr().As4()
		a[3] = last
		return netip.AddrFrom4(a)
	}
	a := v6.Addr().As16()
	a[15] = last
	return netip.AddrFrom16(a)
}

// ranges are the source ranges of a name as of randomSources.
func (s *side) ranges(who string) (out []string) {
	name, family := strings.TrimRight(who, "46"), who[len(who)-1:]
	for _, ipv6 := range []bool{false, true} {
		if family == "4" && ipv6 || family == "6" && !ipv6 {
			continue
		}
		switch name {
		case "everybody":
			out = append(out, map[bool]string{false: "0.0.0.0/0", true: "::/0"}[ipv6])
		case "nobody":
			out = append(out, map[bool]string{false: "192.0.2.0/24", true: "2001:db8::/32"}[ipv6])
		default:
			a := s.places[map[string]string{"outside": "outside", "pod": "here-client", "node": "here-node"}[name]].addr(ipv6)
			out = append(out, netip.PrefixFrom(a, a.BitLen()).String())
		}
	}
	return out
}

// manyAddresses of the outside host, for session affinity.
const manyAddresses = 64

// oracleWorld is what the questions are asked in.
type oracleWorld struct {
	*env
	sides   [2]*side
	outside *place
	many    map[bool][]netip.Addr // of the outside host, by ipv6
}

// newOracleWorld makes pods on both nodes, an outside host, and servers there that say who they
// are and whom they see.
func newOracleWorld(e *env) *oracleWorld {
	e.Helper()
	w := &oracleWorld{env: e, many: map[bool][]netip.Addr{}}
	names := []string{cluster.NodeName(0), cluster.NodeName(1)}
	for i, name := range names {
		w.label(name)
		w.sides[i] = &side{
			number: i, prefix: []string{"ours-", "theirs-"}[i], here: name, there: names[1-i], places: map[string]*place{}, roles: map[netip.Addr]string{}, numbers: map[string]byte{},
		}
	}
	w.addOutside()
	for i, name := range names {
		w.addNode(w.sides[i], w.sides[1-i], name)
	}
	return w
}

// against is the world of a subtest in which the other node is served by this proxy.
func (w *oracleWorld) against(t *testing.T, proxy cluster.ServiceProxy) *oracleWorld {
	t.Helper()
	sub := *w
	sub.env = w.in(t)
	node := w.sides[1].here
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := w.c.SetServiceProxy(ctx, node, cluster.ServiceProxyVKMetal); err != nil {
			t.Errorf("take %s away: %v", proxy, err)
		}
	})
	if err := w.c.SetServiceProxy(w.Context(), node, proxy); err != nil {
		t.Fatal(err)
	}
	sub.sides[0].proxy, sub.sides[1].proxy = cluster.ServiceProxyVKMetal, proxy
	return &sub
}

// label gives the node a zone of its own until the test ends.
func (w *oracleWorld) label(node string) {
	w.Helper()
	set := func(ctx context.Context, value string) error {
		patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:%s}}}`, corev1.LabelTopologyZone, value)
		_, err := w.c.Client.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	}
	if err := set(w.Context(), strconv.Quote(zoneOf(node))); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := set(ctx, "null"); err != nil {
			w.Error(err)
		}
	})
}

// addOutside makes the host outside, with routes to both sides' external addresses.
func (w *oracleWorld) addOutside() {
	w.Helper()
	at, err := w.c.Rig.AddEndpoint(w.Context(), "oracle", "")
	if err != nil {
		w.Fatal(err)
	}
	w.outside = &place{name: "outside", netns: at.NetnsPath, v4: at.V4, v6: at.V6}
	for _, s := range w.sides {
		s.places["outside"] = w.outside
		s.roles[at.V4], s.roles[at.V6] = "outside", "outside"
		node := w.machine(s.here)
		v4, v6 := externalPrefixes(s.number)
		w.route(v4, node.V4)
		w.route(v6, node.V6)
	}
	w.inside(at.NetnsPath, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for i := range manyAddresses {
			v4 := netip.AddrFrom4([4]byte{198, 19, 0, byte(i + 1)})
			v6 := netip.AddrFrom16([16]byte{0: 0xfd, 2: 0xff, 3: 0xfe, 15: byte(i + 1)})
			for _, a := range []netip.Addr{v4, v6} {
				address := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Flags: unix.IFA_F_NODAD}
				if err := netlink.AddrReplace(link, address); err != nil {
					return fmt.Errorf("add %s: %w", a, err)
				}
				w.many[a.Is6()] = append(w.many[a.Is6()], a)
				for _, s := range w.sides {
					s.roles[a] = "outside"
				}
			}
		}
		return nil
	})
	w.serve(w.outside)
}

// route has the outside host send there by way of a node.
func (w *oracleWorld) route(to netip.Prefix, via netip.Addr) {
	w.Helper()
	w.inside(w.outside.netns, func() error {
		return netlink.RouteReplace(&netlink.Route{Dst: &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())}, Gw: via.AsSlice()})
	})
}

func (w *oracleWorld) inside(netns string, do func() error) {
	w.Helper()
	if err := rig.InNetns(netns, do); err != nil {
		w.Fatal(err)
	}
}

// addNode makes the pods of a node.
func (w *oracleWorld) addNode(here, there *side, name string) {
	w.Helper()
	machine := w.machine(name)
	leader, err := machine.Leader(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	node := &place{name: name, node: name, netns: fmt.Sprintf("/proc/%d/ns/net", leader), v4: machine.V4, v6: machine.V6}
	w.put(here, there, "node", node)
	w.answerAll(node)
	for _, role := range []string{"0", "1", "client"} {
		pod := w.busybox("oracle-"+name+"-"+role, "sleep 100000")
		pod.Spec.NodeName = name
		w.create(pod)
	}
	for _, role := range []string{"0", "1", "client"} {
		pod := w.waitPod("oracle-"+name+"-"+role, time.Minute, running)
		p := &place{name: name + "/" + role, node: name}
		for _, pid := range w.podUnits(pod) {
			p.netns = fmt.Sprintf("/proc/%d/root/proc/%s/ns/net", leader, pid)
		}
		for _, ip := range pod.Status.PodIPs {
			if a := netip.MustParseAddr(ip.IP); a.Is6() {
				p.v6 = a
			} else {
				p.v4 = a
			}
		}
		w.put(here, there, role, p)
		w.serve(p)
	}
	v4, v6 := externalPrefixes(here.number)
	w.back(node, v4, v6)
}

func (w *oracleWorld) put(here, there *side, role string, p *place) {
	here.places["here-"+role], there.places["there-"+role] = p, p
	for _, a := range []netip.Addr{p.v4, p.v6} {
		here.roles[a], there.roles[a] = "here-"+role, "there-"+role
	}
}

// back lets the node answer the outside host's many addresses, and sends there what no proxy takes
// of the external addresses: it is lost, as the host does not forward.
func (w *oracleWorld) back(node *place, external ...netip.Prefix) {
	w.Helper()
	prefixes := append([]netip.Prefix{netip.MustParsePrefix("198.19.0.0/24"), netip.MustParsePrefix("fd00:fffe::/64")}, external...)
	w.inside(node.netns, func() error {
		for _, p := range prefixes {
			via := w.outside.addr(p.Addr().Is6())
			r := &netlink.Route{Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, Gw: via.AsSlice()}
			if err := netlink.RouteReplace(r); err != nil {
				return fmt.Errorf("route to %s: %w", p, err)
			}
			w.Cleanup(func() {
				err := rig.InNetns(node.netns, func() error { return netlink.RouteDel(r) })
				if err != nil && !errors.Is(err, unix.ESRCH) {
					w.Error(err)
				}
			})
		}
		return nil
	})
}

// answerAll has the node answer each refused packet: the kernel limits how often it does.
func (w *oracleWorld) answerAll(node *place) {
	w.Helper()
	for _, key := range []string{"net/ipv4/icmp_ratemask", "net/ipv6/icmp/ratemask"} {
		set := func(value string) (old string, err error) {
			err = rig.InNetns(node.netns, func() error {
				b, err := os.ReadFile("/proc/sys/" + key)
				if old = strings.TrimSpace(string(b)); err != nil {
					return err
				}
				return os.WriteFile("/proc/sys/"+key, []byte(value), 0)
			})
			return old, err
		}
		old, err := set("0")
		if err != nil {
			w.Fatal(err)
		}
		w.Cleanup(func() {
			if _, err := set(old); err != nil {
				w.Error(err)
			}
		})
	}
}
