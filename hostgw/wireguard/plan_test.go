package wireguard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"

	"github.com/vk-metal/vk-metal/hostgw"
)

// key is the n-th of a test's public keys.
func key(n int) (k wgtypes.Key) {
	binary.BigEndian.PutUint32(k[:], uint32(n+1))
	return k
}

func keysOf(n int) announcement {
	return announcement{{key(2 * n), 51820}, {key(2*n + 1), 51821}}
}

func node(name, addrs, cidrs, keys string) hostgw.Peer {
	p := hostgw.Peer{Name: name, Keys: keys}
	for _, a := range strings.Fields(addrs) {
		p.Addrs = append(p.Addrs, netip.MustParseAddr(a))
	}
	for _, c := range strings.Fields(cidrs) {
		p.PodCIDRs = append(p.PodCIDRs, netip.MustParsePrefix(c))
	}
	return p
}

func TestAnnouncement(t *testing.T) {
	a := keysOf(3)
	if got, err := parseAnnouncement(a.String()); err != nil || got != a {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := parseAnnouncement(""); !errors.Is(err, errNoKeys) {
		t.Errorf("nothing announced: %v", err)
	}
	good := a.String()
	for _, bad := range []string{
		"v2" + good[2:], good + " x", good[:len(good)-1] + "99", strings.Replace(good, ":51820", ":0", 1), strings.Replace(good, ":51820", "", 1),
		"v1 " + key(1).String() + ":1 " + key(1).String() + ":2", "v1 " + wgtypes.Key{}.String() + ":1 " + key(1).String() + ":2", strings.Replace(good, "A", "!", 1),
	} {
		if got, err := parseAnnouncement(bad); err == nil {
			t.Errorf("%q is taken for %v", bad, got)
		}
	}
}

func FuzzAnnouncement(f *testing.F) {
	f.Add(keysOf(1).String())
	f.Fuzz(func(t *testing.T, text string) {
		a, err := parseAnnouncement(text)
		if err != nil {
			return
		}
		if again, err := parseAnnouncement(a.String()); err != nil || again != a {
			t.Errorf("%q: %v, %v", text, again, err)
		}
	})
}

func TestPlan(t *testing.T) {
	cidrs := "10.244.2.0/24 fd00:244:2::/64"
	lookup := func(a netip.Addr) (int, bool, error) {
		switch {
		case a == netip.MustParseAddr("192.0.2.1"):
			return 1, true, nil
		case a.Is4() && a.As4()[3] >= 200:
			return 0, false, errors.New("no route")
		}
		return 2, false, nil
	}
	for name, tc := range map[string]struct {
		peers   []hostgw.Peer
		holders map[wgtypes.Key]string
		want    string
	}{
		"two devices":       {peers: []hostgw.Peer{node("b", "192.0.2.2 2001:db8::2", cidrs, keysOf(1).String())}, want: "b 192.0.2.2:51820 192.0.2.2:51821 [10.244.2.0/24 fd00:244:2::/64]"},
		"IPv6":              {peers: []hostgw.Peer{node("b", "2001:db8::2", cidrs, keysOf(1).String())}, want: "b [2001:db8::2]:51820 [2001:db8::2]:51821 [10.244.2.0/24 fd00:244:2::/64]"},
		"a way that is":     {peers: []hostgw.Peer{node("b", "192.0.2.200 192.0.2.3", "10.244.2.0/24", keysOf(1).String())}, want: "b 192.0.2.3:51820 192.0.2.3:51821 [10.244.2.0/24]"},
		"no way now":        {peers: []hostgw.Peer{node("b", "192.0.2.200", "10.244.2.0/24", keysOf(1).String())}, want: "b 192.0.2.200:51820 192.0.2.200:51821 [10.244.2.0/24]"},
		"no keys":           {peers: []hostgw.Peer{node("b", "192.0.2.2", cidrs, "")}, want: "b: the node announces no keys"},
		"our address":       {peers: []hostgw.Peer{node("b", "192.0.2.1", cidrs, keysOf(1).String())}, want: "b: node address 192.0.2.1 is this host's own"},
		"our key":           {peers: []hostgw.Peer{node("b", "192.0.2.2", cidrs, keysOf(0).String())}, want: "b: the annotation wireguard.vk-metal.io/keys has the key of another node"},
		"a stolen key":      {peers: []hostgw.Peer{node("b", "192.0.2.2", "10.244.2.0/24", keysOf(1).String()), node("c", "192.0.2.3", "10.244.3.0/24", keysOf(1).String())}, holders: map[wgtypes.Key]string{key(2): "c", key(3): "c"}, want: "b: the annotation wireguard.vk-metal.io/keys has the key of another node; c 192.0.2.3:51820 192.0.2.3:51821 [10.244.3.0/24]"},
		"one key, at start": {peers: []hostgw.Peer{node("c", "192.0.2.3", "10.244.3.0/24", keysOf(1).String()), node("b", "192.0.2.2", "10.244.2.0/24", keysOf(1).String())}, want: "b 192.0.2.2:51820 192.0.2.2:51821 [10.244.2.0/24]; c: the annotation wireguard.vk-metal.io/keys has the key of another node"},
	} {
		t.Run(name, func(t *testing.T) {
			p := makePlan(inputs{TunnelInputs: hostgw.TunnelInputs{Peers: tc.peers, Lookup: lookup}, self: keysOf(0), holders: tc.holders})
			var got []string
			for node, err := range p.errs {
				text, _, _ := strings.Cut(err.Error(), ": network.encryption")
				got = append(got, node+": "+text)
			}
			for node, keys := range p.keys {
				a, b := p.slots[0][keys[0].key], p.slots[1][keys[1].key]
				if !slices.Equal(a.allowed, b.allowed) {
					t.Errorf("the devices differ: %v and %v", a, b)
				}
				got = append(got, fmt.Sprint(node, " ", a.endpoint, " ", b.endpoint, " ", a.allowed))
			}
			slices.Sort(got)
			if text := strings.Join(got, "; "); text != tc.want {
				t.Errorf("got  %s\nwant %s", text, tc.want)
			}
		})
	}
}

// kernel is what WireGuard makes of a configuration: an address is allowed to one peer only.
func kernel(have peers, configs []wgtypes.PeerConfig) peers {
	now := maps.Clone(have)
	for _, c := range configs {
		p, there := now[c.PublicKey]
		if c.Remove || c.UpdateOnly && !there {
			delete(now, c.PublicKey)
			continue
		}
		if c.Endpoint != nil {
			p.endpoint = c.Endpoint.AddrPort()
		}
		p.keepalive = *c.PersistentKeepaliveInterval
		p.allowed = nil
		for _, a := range c.AllowedIPs {
			ip, _ := netip.AddrFromSlice(a.IP)
			bits, _ := a.Mask.Size()
			prefix := netip.PrefixFrom(ip, bits)
			for key, other := range now {
				other.allowed = slices.DeleteFunc(slices.Clone(other.allowed), func(o netip.Prefix) bool { return o == prefix })
				now[key] = other
			}
			p.allowed = append(p.allowed, prefix)
		}
		now[c.PublicKey] = p
	}
	return now
}

// anyPeers draws peers that share no podCIDR; those that answered are so only in the kernel.
func anyPeers(t *rapid.T, name string, kernel bool) peers {
	out := peers{}
	for i, cidr := range rapid.Permutation([]int{0, 1, 2, 3, 4, 5}).Draw(t, name) {
		if !rapid.Bool().Draw(t, "there") {
			continue
		}
		p := peer{
			endpoint:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, rapid.ByteRange(1, 3).Draw(t, "endpoint")}), 51820),
			keepalive: 25 * time.Second,
		}
		if rapid.Bool().Draw(t, "has podCIDRs") {
			p.allowed = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(cidr), 0}), 24)}
		}
		if kernel {
			p.answered, p.keepalive = rapid.Bool().Draw(t, "answered"), time.Duration(rapid.IntRange(0, 6).Draw(t, "keepalive"))*5*time.Second
		}
		out[key(i)] = p
	}
	return out
}

// TestDiff: whatever a device has, one configuration makes it as wanted, says nothing of peers
// that are so, and there is nothing to do after it; what we remember is what the kernel has.
func TestDiff(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want, have := anyPeers(t, "want", false), anyPeers(t, "have", true)
		configs := diff(want, have)
		now := kernel(have, configs)
		if again := diff(want, now); len(again) > 0 {
			t.Fatalf("have %v, want %v: still %+v", have, want, again)
		}
		remembered := after(have, configs, want)
		for k, p := range now {
			if !p.same(remembered[k]) || p.answered != remembered[k].answered || !slices.Equal(p.allowed, want[k].allowed) || p.endpoint != want[k].endpoint {
				t.Fatalf("peer %v is %v, remembered %v, wanted %v", k, p, remembered[k], want[k])
			}
			if wait := p.keepalive == probe; !p.answered && !wait {
				t.Fatalf("peer %v that has not answered is not asked: %v", k, p)
			}
		}
		if len(now) != len(want) || len(remembered) != len(want) {
			t.Fatalf("%d peers, %d remembered, %d wanted", len(now), len(remembered), len(want))
		}
		for _, c := range configs {
			h, there := have[c.PublicKey]
			w := want[c.PublicKey]
			if !h.answered {
				w.keepalive = probe
			}
			if there && !c.Remove && h.same(w) {
				t.Fatalf("peer %v is as it should be and is configured", c.PublicKey)
			}
		}
	})
}

// TestSchedule: a key is replaced only while its slot is idle, at least an eighth of an
// interval before it is used again and a quarter after it was; once in each idle interval.
func TestSchedule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		interval := time.Duration(rapid.Int64Range(int64(10*time.Minute), int64(1000*time.Hour)).Draw(t, "interval"))
		s := newSchedule(interval, rapid.StringN(1, 20, -1).Draw(t, "node"))
		start := time.Unix(rapid.Int64Range(1e9, 4e9).Draw(t, "start"), 0)
		made := [slots]time.Time{start, start}
		keys := [slots]int{}
		end := start.Add(6 * interval)
		for now := start; now.Before(end); now = now.Add(max(s.next(now), time.Second)) {
			idle := 1 - s.active(now)
			if !s.due(now, made[idle]) {
				continue
			}
			made[idle], keys[idle] = now, keys[idle]+1
			for _, later := range []time.Duration{0, interval / 8} {
				if s.active(now.Add(later-1)) == idle || s.active(now.Add(-interval/4+1)) == idle && later == 0 {
					t.Fatalf("slot %d gets a key at %v and is in use around it", idle, now)
				}
			}
			if s.due(now, made[idle]) {
				t.Fatalf("twice at %v", now)
			}
		}
		for i, n := range keys {
			if n < 2 || n > 4 {
				t.Fatalf("slot %d got %d keys in six intervals", i, n)
			}
		}
	})
	never := newSchedule(0, "a")
	if now := time.Now(); never.active(now) != 0 || never.due(now, time.Time{}) || never.next(now) != 0 {
		t.Error("keys change without a rotation")
	}
}

func TestChoose(t *testing.T) {
	keys := keysOf(1)
	yes, no := func(s int) peers { return peers{keys[s].key: {answered: true}} }, peers{}
	for _, tc := range []struct {
		have   [slots]peers
		active int
		slot   int
		works  bool
	}{
		{[slots]peers{yes(0), yes(1)}, 0, 0, true},
		{[slots]peers{yes(0), yes(1)}, 1, 1, true},
		{[slots]peers{yes(0), no}, 1, 0, true},
		{[slots]peers{no, no}, 1, 1, false},
	} {
		if slot, works := choose(tc.active, keys, tc.have); slot != tc.slot || works != tc.works {
			t.Errorf("%+v: slot %d, %v", tc, slot, works)
		}
	}
}

func TestDisjoint(t *testing.T) {
	got := fmt.Sprint(disjoint(node("", "", "10.244.2.0/24 10.244.0.0/16 fd00:1::/64 10.244.0.0/24 10.245.0.0/24 fd00::/32", "").PodCIDRs))
	if want := "[10.244.0.0/16 10.245.0.0/24 fd00::/32 fd00:1::/64]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
