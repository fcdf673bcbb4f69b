package services

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/vk-metal/vk-metal/internal/testnet"
)

// anyPorts draws what a Service may want, out of so few addresses that Services collide.
func anyPorts(t *rapid.T, service string) []Port {
	var out []Port
	for i := range rapid.IntRange(0, 2).Draw(t, "ports") {
		p := Port{ID: fmt.Sprintf("%s:%d", service, i), Protocol: rapid.SampledFrom([]Protocol{6, 17}).Draw(t, "protocol"), Some: true}
		last := func(what string, n int) byte { return byte(rapid.IntRange(1, n).Draw(t, what)) }
		for e := range rapid.IntRange(0, 4).Draw(t, "endpoints") {
			p.Cluster = append(p.Cluster, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(e), last("endpoint", 3)}), 8080))
		}
		if p.Some = len(p.Cluster) > 0; p.Some {
			p.Here = p.Cluster[:rapid.IntRange(0, len(p.Cluster)).Draw(t, "here")]
			p.Near = []netip.Addr{p.Cluster[0].Addr()}
		}
		if rapid.IntRange(0, 3).Draw(t, "affinity") == 0 {
			p.Affinity = time.Duration(last("seconds", 2)) * time.Hour
		}
		p.Frontend = []Frontend{{Kind: ClusterIP, Addr: netip.AddrFrom4([4]byte{10, 96, 0, last("cluster IP", 3)}), Port: 80, Local: rapid.Bool().Draw(t, "internal")}}
		local := rapid.Bool().Draw(t, "local")
		if rapid.Bool().Draw(t, "external") {
			f := Frontend{Kind: External, Addr: netip.AddrFrom4([4]byte{192, 0, 2, last("external IP", 2)}), Port: 80, Local: local}
			if f.Limited = rapid.Bool().Draw(t, "limited"); f.Limited {
				source := rapid.SampledFrom([]string{"192.0.2.0/24", "192.0.2.0/25", "0.0.0.0/0", "198.51.100.7/32"})
				for _, text := range rapid.SliceOfN(source, 0, 4).Draw(t, "sources") {
					f.Sources = append(f.Sources, netip.MustParsePrefix(text))
				}
			}
			p.Frontend = append(p.Frontend, f)
		}
		if rapid.Bool().Draw(t, "node port") {
			p.Frontend = append(p.Frontend, Frontend{Kind: NodePort, Addr: netip.IPv4Unspecified(), Port: uint16(30000 + int(last("node port number", 2))), Local: local})
		}
		out = append(out, p)
	}
	return out
}

// TestChangesAddUp: the changes of any history lead to what the end alone leads to,
// whoever claimed what in between, and many changes merged are as good as one by one.
func TestChangesAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, last := newState(), map[string][]Port{}
		have, haveGroups := elements{}, map[string]*group{}
		apply := func(d *delta) {
			for set, kv := range d.del {
				for k, v := range kv {
					if have[set][k] != v {
						t.Fatalf("deletes %v %x, which is not there as that", set, k)
					}
					delete(have[set], k)
				}
			}
			for set, kv := range d.add {
				for k, v := range kv {
					if _, twice := have[set][k]; twice {
						t.Fatalf("adds %v %x, which is there", set, k)
					}
					have.put(set, k, v)
				}
			}
			for name, g := range d.groups {
				if haveGroups[name] = g; g == nil {
					delete(haveGroups, name)
				}
			}
		}
		for range rapid.IntRange(1, 6).Draw(t, "batches") {
			total := &delta{}
			for range rapid.IntRange(1, 4).Draw(t, "changes") {
				service := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "service")
				last[service] = anyPorts(t, service)
				total.merge(s.set(service, int64(service[0]%2), last[service]))
			}
			apply(total)
		}
		fresh := newState()
		for service, ports := range last {
			fresh.load(service, int64(service[0]%2), ports)
		}
		want, wantGroups := fresh.all()
		list, _ := fresh.whole()
		for set, kv := range want {
			if n := len(list.of(set)); n != len(kv) {
				t.Fatalf("%v has %d elements, listed are %d", set, len(kv), n)
			}
		}
		once := elements{}
		for set := range list {
			for _, e := range list.of(set) {
				once.put(set, e.key, e.value)
			}
		}
		if d, a := once.minus(want), want.minus(once); len(d) > 0 || len(a) > 0 {
			t.Fatalf("listed too much %v, too little %v", d, a)
		}
		if d, a := have.minus(want), want.minus(have); len(d) > 0 || len(a) > 0 {
			t.Fatalf("too much %v, missing %v", d, a)
		}
		if !maps.EqualFunc(haveGroups, wantGroups, (*group).equal) {
			t.Fatalf("groups %v, want %v", haveGroups, wantGroups)
		}
	})
}

// TestKernelTakesAnyHistory: the kernel accepts every change, and has the whole in the end.
func TestKernelTakesAnyHistory(t *testing.T) {
	w := newWorld(t)
	rapid.Check(t, func(rt *rapid.T) {
		tb := newTable(w.Node, testnet.LinkGroup)
		defer tb.close()
		s := newState()
		if err := tb.replace(s.whole()); err != nil {
			rt.Fatal(err)
		}
		for range rapid.IntRange(1, 8).Draw(rt, "changes") {
			service := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "service")
			if err := tb.change(s.set(service, int64(service[0]%2), anyPorts(rt, service))); err != nil {
				rt.Fatalf("%v\n%s", err, w.Ruleset())
			}
		}
		if content, _ := s.all(); !tb.same(content) {
			rt.Fatalf("the kernel has something else\n%s", w.Ruleset())
		}
	})
	w.Ruleset()
}
