package config

import (
	"fmt"
	"net/netip"
	"strings"

	"gopkg.in/yaml.v3"
	"k8s.io/apimachinery/pkg/labels"
)

// PoolsKind opens the document of address pools.
const PoolsKind = "AddressPools"

// Range is a run of addresses of one IP version, both ends included.
type Range struct{ First, Last netip.Addr }

// Contains says whether the address is in the range.
func (r Range) Contains(a netip.Addr) bool {
	return a.BitLen() == r.First.BitLen() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// String is first-last.
func (r Range) String() string { return r.First.String() + "-" + r.Last.String() }

// Pool is a set of addresses for LoadBalancer Services.
type Pool struct {
	Name   string
	Ranges []Range
	// Auto lets Services have its addresses without asking for it.
	Auto bool
	// Namespaces (empty: all) and ServiceSelector say which Services may use it.
	Namespaces      []string
	ServiceSelector labels.Selector
}

// ParsePools checks data as the pools called name. All mistakes are reported at once, as Errors.
func ParsePools(name string, data []byte) ([]Pool, error) {
	d := &decoder{file: name}
	var pools []Pool
	if root := d.document(data); root != nil {
		var apiVersion, kind string
		d.mapping("", root,
			parsed(d, "apiVersion", &apiVersion, parseExactly(APIVersion)),
			parsed(d, "kind", &kind, parseExactly(PoolsKind)),
			field{"pools", func(key string, node *yaml.Node) { pools = d.pools(key, node) }})
		for key, want := range map[string]string{"apiVersion": APIVersion, "kind": PoolsKind} {
			if lookup(root, key) == nil {
				d.fail(root.Line, key, "missing: write %s: %s", key, want)
			}
		}
	}
	if len(d.errs) > 0 {
		return nil, d.errs.sorted()
	}
	return pools, nil
}

func (d *decoder) pools(key string, node *yaml.Node) (pools []Pool) {
	d.items(key, node, func(item *yaml.Node) {
		p := Pool{Auto: true, ServiceSelector: labels.Everything()}
		at := fmt.Sprintf("%s[%d]", key, len(pools))
		before := len(d.errs)
		d.mapping(at, item,
			parsed(d, "name", &p.Name, parsePeerName),
			listOf(d, "ranges", &p.Ranges, parseAddressRange),
			parsed(d, "auto", &p.Auto, parseBool),
			listOf(d, "namespaces", &p.Namespaces, parseDomain),
			parsed(d, "serviceSelector", &p.ServiceSelector, parseSelector))
		if len(d.errs) > before {
			return
		}
		if p.Name == "" || len(p.Ranges) == 0 {
			d.fail(item.Line, at, "a pool needs a name and ranges")
			return
		}
		d.overlaps(at, item.Line, pools, &p)
		pools = append(pools, p)
	})
	return pools
}

// overlaps refuses addresses that two pools, or two ranges of one, have.
func (d *decoder) overlaps(at string, line int, pools []Pool, p *Pool) {
	for i := range p.Ranges {
		for j := range i {
			if p.Ranges[i].overlaps(p.Ranges[j]) {
				d.fail(line, at+".ranges", "%s and %s overlap", p.Ranges[j], p.Ranges[i])
			}
		}
	}
	for _, o := range pools {
		if o.Name == p.Name {
			d.fail(line, at+".name", "%q is the name of another pool", p.Name)
		}
		for _, theirs := range o.Ranges {
			for _, r := range p.Ranges {
				if r.overlaps(theirs) {
					d.fail(line, at+".ranges", "%s overlaps %s of pool %s", r, theirs, o.Name)
				}
			}
		}
	}
}

func (r Range) overlaps(o Range) bool { return r.Contains(o.First) || o.Contains(r.First) }

// parseAddressRange takes first-last, a CIDR or one address.
func parseAddressRange(text string) (Range, error) {
	if first, last, both := strings.Cut(text, "-"); both {
		a, err := parseNodeIP(strings.TrimSpace(first))
		if err != nil {
			return Range{}, err
		}
		b, err := parseNodeIP(strings.TrimSpace(last))
		if err == nil && (a.BitLen() != b.BitLen() || b.Less(a)) {
			err = fmt.Errorf("%q must be two addresses of one IP version, the lower one first", text)
		}
		return Range{a, b}, err
	}
	if !strings.Contains(text, "/") {
		a, err := parseNodeIP(text)
		return Range{a, a}, err
	}
	p, err := parseRange(text)
	if err != nil {
		return Range{}, err
	}
	last := p.Addr().AsSlice()
	for i := p.Bits(); i < p.Addr().BitLen(); i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	b, _ := netip.AddrFromSlice(last)
	return Range{p.Addr(), b}, nil
}
