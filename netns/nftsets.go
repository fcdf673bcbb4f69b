package netns

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Names of the table and what is in it. The table is whole and ours: nothing of it is
// kept that we did not want, and no other table is ever touched.
const (
	tableName = "vk-metal-pods"

	setPods4     = "pods4" // interface . address: what a pod may send from
	setPods6     = "pods6"
	setLocal4    = "local4" // this node's pods, by range
	setLocal6    = "local6"
	setNoMasq4   = "no-masquerade4"
	setNoMasq6   = "no-masquerade6"
	setHairpin4  = "hairpin4" // address . address of pods with host ports
	setHairpin6  = "hairpin6"
	mapHostPort4 = "hostports4" // protocol . host address . port : pod address . port
	mapHostPort6 = "hostports6"
	mapAnyPort4  = "hostports-any4" // protocol . port : pod address . port
	mapAnyPort6  = "hostports-any6"
)

// elements is the wanted content of the table's sets and maps: set → key → value (""
// for sets), in the kernel's binary form.
type elements map[string]map[string]string

func (e elements) put(set, key, val string) {
	if e[set] == nil {
		e[set] = map[string]string{}
	}
	e[set][key] = val
}

// merge adds all of other.
func (e elements) merge(other elements) {
	for set, kv := range other {
		if e[set] == nil {
			e[set] = map[string]string{}
		}
		maps.Copy(e[set], kv)
	}
}

// minus is what is in e but not, or with another value, in other.
func (e elements) minus(other elements) elements {
	d := elements{}
	for set, kv := range e {
		for k, v := range kv {
			if o, ok := other[set][k]; !ok || o != v {
				d.put(set, k, v)
			}
		}
	}
	return d
}

func ifnameKey(name string) string {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return string(b)
}

func portKey(port uint16) string {
	return string(binary.BigEndian.AppendUint16(nil, port)) + "\x00\x00"
}

func addrKey(ip netip.Addr) string { return string(ip.AsSlice()) }

// by4 picks the IPv4 or the IPv6 name.
func by4(ip netip.Addr, four, six string) string {
	if ip.Is4() {
		return four
	}
	return six
}

// podElements is what one pod has in the table.
func podElements(ifname string, ips []netip.Addr, ports map[hostPortKey]netip.AddrPort) elements {
	e := elements{}
	for _, ip := range ips {
		e.put(by4(ip, setPods4, setPods6), ifnameKey(ifname)+addrKey(ip), "")
		if len(ports) > 0 {
			e.put(by4(ip, setHairpin4, setHairpin6), addrKey(ip)+addrKey(ip), "")
		}
	}
	for k, to := range ports {
		set, key := k.element()
		e.put(set, key, addrKey(to.Addr())+portKey(to.Port()))
	}
	return e
}

// rangeElements are the interval elements of prefixes: starts and ends, merged, so
// that overlapping and adjacent prefixes do not collide in the kernel's tree.
func rangeElements(prefixes []netip.Prefix) []nftables.SetElement {
	type span struct{ from, to netip.Addr } // to is exclusive, invalid for "the end"
	var spans []span
	for _, p := range prefixes {
		spans = append(spans, span{p.Masked().Addr(), lastAddr(p).Next()})
	}
	slices.SortFunc(spans, func(a, b span) int { return a.from.Compare(b.from) })
	var out []nftables.SetElement
	for i := 0; i < len(spans); {
		s := spans[i]
		for i++; i < len(spans) && (!s.to.IsValid() || spans[i].from.Compare(s.to) <= 0); i++ {
			if s.to.IsValid() && (!spans[i].to.IsValid() || spans[i].to.Compare(s.to) > 0) {
				s.to = spans[i].to
			}
		}
		out = append(out, nftables.SetElement{Key: s.from.AsSlice()})
		if s.to.IsValid() {
			out = append(out, nftables.SetElement{Key: s.to.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

// lastAddr is the highest address of the prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// family splits prefixes by IP version.
func family(prefixes []netip.Prefix, four bool) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(prefixes), func(p netip.Prefix) bool { return p.Addr().Is4() != four })
}
