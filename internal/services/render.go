package services

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// setName is a set or map of one of the tables.
type setName struct {
	ipv6 bool
	name string
}

// Names of what is in each table.
const (
	tableName = "vk-metal-services"

	setClusterIPs = "cluster-ips"
	setHairpins   = "hairpins"  // address . address of this node's endpoints
	setFirewalled = "limited"   // address . protocol . port of frontends that not everybody may use
	setSources    = "allowed"   // the same . source range
	mapServices   = "services"  // address . protocol . port : chain
	mapShortcuts  = "shortcuts" // where pods and the host itself go despite a Local policy
	mapUnserved   = "unserved"  // reject or drop: frontends without an endpoint for this node
	mapSlots      = "slots"     // address . protocol . port . slot : endpoint

	// The same without the address, for node ports.
	nodePorts = "node-port-"
)

// Chains that elements lead to; numbered ones are followed by the number of endpoints.
const (
	chainCluster  = "cluster"  // any endpoint, clients keep their address
	chainExternal = "external" // any endpoint, clients get the node's address
	chainLocal    = "local"    // an endpoint of this node, clients keep their address
	chainReject   = "refused"
	chainDrop     = "dropped"
)

// elements is the content of sets and maps: set → key → value in the kernel's binary form;
// the value is a chain's name in verdict maps and "" in sets.
type elements map[setName]map[string]string

func (e elements) put(set setName, key, value string) {
	if e[set] == nil {
		e[set] = map[string]string{}
	}
	e[set][key] = value
}

// sink takes elements, as of type elements.
type sink interface {
	put(set setName, key, value string)
}

// listed is elements that are gone through once: cheaper to make than elements where there are a
// hundred thousand. No key may be there twice.
type listed map[setName]*[]element

type element struct{ key, value string }

func (l listed) put(set setName, key, value string) {
	list := l[set]
	if list == nil {
		list = new([]element)
		l[set] = list
	}
	*list = append(*list, element{key, value})
}

// of is the content of one set.
func (l listed) of(set setName) []element {
	if list := l[set]; list != nil {
		return *list
	}
	return nil
}

func (l listed) count() (n int) {
	for _, list := range l {
		n += len(*list)
	}
	return n
}

// listed is e in the other form.
func (e elements) listed() listed {
	out := listed{}
	for set, kv := range e {
		for k, v := range kv {
			out.put(set, k, v)
		}
	}
	return out
}

// minus is what is in e but not, or with another value, in other.
func (e elements) minus(other elements) elements {
	out := elements{}
	for set, kv := range e {
		for k, v := range kv {
			if o, ok := other[set][k]; !ok || o != v {
				out.put(set, k, v)
			}
		}
	}
	return out
}

// place is where one Frontend is in the tables: its set names' prefix and its key.
func (f *Frontend) place(proto Protocol) (prefix, key string) {
	key = string([]byte{byte(proto), 0, 0, 0}) + string(binary.BigEndian.AppendUint16(nil, f.Port)) + "\x00\x00"
	if f.Kind == NodePort {
		return nodePorts, key
	}
	return "", string(f.Addr.AsSlice()) + key
}

func numbered(prefix, chain string, n int) string { return fmt.Sprintf("%s%s-%d", prefix, chain, n) }

// render adds the elements of one frontend of the port.
func (p *Port) render(f *Frontend, e sink) {
	ipv6 := f.Addr.Is6()
	prefix, key := f.place(p.Protocol)
	in := func(name string) setName { return setName{ipv6, prefix + name} }
	p.renderLimits(f, key, e)
	switch {
	case !p.Some:
		e.put(in(mapUnserved), key, chainReject)
		return
	case f.Kind == ClusterIP && f.Local && len(p.Here) == 0:
		e.put(in(mapUnserved), key, chainDrop)
		return
	}
	if p.Affinity > 0 {
		e.put(in(mapServices), key, p.groupChain(f))
		return
	}
	cluster, here := len(p.Cluster), len(p.Here)
	switch {
	case f.Kind == ClusterIP && f.Local:
		e.put(in(mapServices), key, numbered(prefix, chainCluster, here))
		p.slots(in(mapSlots), key, p.Here, 0, e)
		return
	case f.Kind == ClusterIP:
		e.put(in(mapServices), key, numbered(prefix, chainCluster, cluster))
	case f.Local:
		e.put(in(mapServices), key, numbered(prefix, chainLocal, here))
		e.put(in(mapShortcuts), key, numbered(prefix, chainCluster, cluster))
		p.slots(in(mapSlots), key, p.Here, maxSlots, e)
	default:
		e.put(in(mapServices), key, numbered(prefix, chainExternal, cluster))
	}
	p.slots(in(mapSlots), key, p.Cluster, 0, e)
}

func (p *Port) slots(set setName, key string, list []netip.AddrPort, first int, e sink) {
	for i, to := range list {
		var slot [4]byte
		binary.NativeEndian.PutUint32(slot[:], uint32(first+i))
		e.put(set, key+string(slot[:]), endpointValue(to))
	}
}

func endpointValue(to netip.AddrPort) string {
	buf := make([]byte, 0, 20) // stays on the stack: there are many
	if a := to.Addr(); a.Is4() {
		four := a.As4()
		buf = append(buf, four[:]...)
	} else {
		sixteen := a.As16()
		buf = append(buf, sixteen[:]...)
	}
	return string(append(binary.BigEndian.AppendUint16(buf, to.Port()), 0, 0))
}

func (p *Port) renderLimits(f *Frontend, key string, e sink) {
	if !f.Limited {
		return
	}
	ipv6 := f.Addr.Is6()
	e.put(setName{ipv6, setFirewalled}, key, "")
	for _, s := range outermost(f.Sources) {
		e.put(setName{ipv6, setSources}, key+string(s.Addr().AsSlice())+key+string(lastAddr(s).AsSlice()), "")
	}
}

// outermost leaves out prefixes that others cover: the kernel refuses overlaps.
func outermost(prefixes []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for i, p := range prefixes {
		covered := func(j int, o netip.Prefix) bool {
			return o.Overlaps(p) && (o.Bits() < p.Bits() || o.Bits() == p.Bits() && j < i)
		}
		keep := true
		for j, o := range prefixes {
			keep = keep && !covered(j, o)
		}
		if keep {
			out = append(out, p)
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
