package netns

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/nftables"
	"pgregory.net/rapid"
)

func pfx(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestAllocatorGoesRound(t *testing.T) {
	a := newAllocator()
	a.setCIDRs(pfx("10.0.0.0/29")) // .2 to .6
	var got []string
	for i := range 12 {
		uid := fmt.Sprint(i)
		ips, err := a.allocate(uid)
		must(t, err)
		got = append(got, ips[0].String()[7:])
		if i > 0 {
			a.release(fmt.Sprint(i-1), []netip.Addr{netip.MustParseAddr("10.0.0." + got[i-1])})
		}
	}
	if want := []string{"2", "3", "4", "5", "6", "2", "3", "4", "5", "6", "2", "3"}; !slices.Equal(got, want) {
		t.Errorf("addresses in order: %v, want %v", got, want)
	}
	a.setCIDRs(pfx("10.0.0.0/29", "10.1.0.0/29"))
	ips, err := a.allocate("x")
	must(t, err)
	if fmt.Sprint(ips) != "[10.0.0.4 10.1.0.2]" {
		t.Errorf("after a second range came: %v", ips)
	}
}

func TestAllocatorEnds(t *testing.T) {
	for cidr, want := range map[string]int{
		"10.0.0.0/32": 0, "10.0.0.0/31": 0, "10.0.0.0/30": 1, "10.0.0.0/29": 5, "255.255.255.248/29": 5,
		"fd00::/128": 0, "fd00::/127": 0, "fd00::/126": 2, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126": 2,
	} {
		a := newAllocator()
		a.setCIDRs(pfx(cidr))
		n := 0
		for ; n < 10; n++ {
			if _, err := a.allocate(fmt.Sprint(n)); err != nil {
				break
			}
		}
		if n != want {
			t.Errorf("%s holds %d pods, want %d", cidr, n, want)
		}
	}
}

// TestAllocatorProperties: no address twice, none outside, all found, all given back.
func TestAllocatorProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := newAllocator()
		p := netip.MustParsePrefix("10.0.0.0/28")
		a.setCIDRs([]netip.Prefix{p})
		held := map[string]netip.Addr{}
		for i := range rapid.IntRange(1, 80).Draw(t, "steps") {
			uids := slices.Sorted(func(yield func(string) bool) {
				for u := range held {
					if !yield(u) {
						return
					}
				}
			})
			if len(uids) > 0 && rapid.Bool().Draw(t, "release") {
				uid := rapid.SampledFrom(uids).Draw(t, "uid")
				a.release(uid, []netip.Addr{held[uid]})
				delete(held, uid)
				continue
			}
			ips, err := a.allocate(fmt.Sprint(i))
			if (err != nil) != (len(held) == 13) {
				t.Fatalf("with %d held: %v", len(held), err)
			}
			if err != nil {
				continue
			}
			for uid, ip := range held {
				if ip == ips[0] {
					t.Fatalf("%s is held by %s", ip, uid)
				}
			}
			if !p.Contains(ips[0]) {
				t.Fatalf("%s is outside", ips[0])
			}
			held[fmt.Sprint(i)] = ips[0]
		}
	})
}

// TestRangesCoverTheSame: the merged intervals hold exactly what the prefixes hold.
func TestRangesCoverTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prefixes := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) netip.Prefix {
			a := netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "low")})
			if rapid.Bool().Draw(t, "high") {
				a = netip.AddrFrom4([4]byte{255, 255, 255, rapid.Byte().Draw(t, "low")})
			}
			p, _ := a.Prefix(rapid.IntRange(24, 32).Draw(t, "bits"))
			return p
		}), 0, 8).Draw(t, "prefixes")
		elems := rangeElements(prefixes)
		for _, top := range []byte{10, 255} {
			for low := range 256 {
				ip := netip.AddrFrom4([4]byte{10, 0, 0, byte(low)})
				if top == 255 {
					ip = netip.AddrFrom4([4]byte{255, 255, 255, byte(low)})
				}
				if want := contains(prefixes, ip); inside(elems, ip) != want {
					t.Fatalf("%s in %v: %v", ip, prefixes, !want)
				}
			}
		}
	})
}

func inside(elems []nftables.SetElement, ip netip.Addr) bool {
	in := false
	var last netip.Addr
	for _, e := range elems {
		a, _ := netip.AddrFromSlice(e.Key)
		if last.IsValid() && a.Compare(last) <= 0 {
			panic("not in order")
		}
		last = a
		if a.Compare(ip) <= 0 {
			in = !e.IntervalEnd
		}
	}
	return in
}

func TestAlias(t *testing.T) {
	id := identity{"b6c2-x", []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::3")}}
	got, ok := parseAlias(id.alias())
	if !ok || got.uid != id.uid || !slices.Equal(got.ips, id.ips) {
		t.Errorf("%q reads as %v %v", id.alias(), got, ok)
	}
	if len(id.alias()) > 255 {
		t.Errorf("alias is %d bytes long", len(id.alias()))
	}
}

func FuzzParseAlias(f *testing.F) {
	for _, s := range []string{"", "vk-metal/1 uid=a ips=10.0.0.1", "vk-metal/1 uid=../x ips=10.0.0.1", "vk-metal/1 uid=a ips=,", "vk-metal/1 ips=::1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if id, ok := parseAlias(s); ok {
			if again, ok := parseAlias(id.alias()); !ok || again.uid != id.uid || !slices.Equal(again.ips, id.ips) {
				t.Errorf("%q reads as %v, then as %v", s, id, again)
			}
		}
	})
}

func TestHostPortElementsRoundTrip(t *testing.T) {
	for _, host := range []string{"0.0.0.0", "::", "192.0.2.1", "2001:db8::1"} {
		k := hostPortKey{17, netip.MustParseAddr(host), 8080}
		to := netip.MustParseAddrPort("10.1.2.3:81")
		if k.ip.Is6() {
			to = netip.MustParseAddrPort("[fd00::3]:81")
		}
		set, key := k.element()
		got, target, ok := parseHostPort(set, key, addrKey(to.Addr())+portKey(to.Port()))
		if !ok || got != k || target != to {
			t.Errorf("%v to %v reads as %v to %v (%v)", k, to, got, target, ok)
		}
	}
}
