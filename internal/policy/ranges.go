package policy

import (
	"net/netip"
	"slices"
)

// span is a range of addresses, both ends included.
type span struct{ from, to netip.Addr }

// String is the range as nftables writes it.
func (s span) String() string { return s.from.String() + "-" + s.to.String() }

func spanOf(p netip.Prefix) span {
	p = p.Masked()
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return span{p.Addr(), last}
}

// without is what is left of s when hole is taken out.
func (s span) without(hole span) []span {
	if hole.to.Less(s.from) || s.to.Less(hole.from) {
		return []span{s}
	}
	var out []span
	if s.from.Less(hole.from) {
		out = append(out, span{s.from, hole.from.Prev()})
	}
	if hole.to.Less(s.to) {
		out = append(out, span{hole.to.Next(), s.to})
	}
	return out
}

// block is an ipBlock: a range with holes.
func block(cidr netip.Prefix, except []netip.Prefix) []span {
	out := []span{spanOf(cidr)}
	for _, hole := range except {
		var next []span
		for _, s := range out {
			next = append(next, s.without(spanOf(hole))...)
		}
		out = next
	}
	return out
}

// union merges spans of one IP version that overlap or touch: the kernel's interval sets
// refuse overlaps. The result is in order.
func union(spans []span) []span {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b span) int { return a.from.Compare(b.from) })
	var out []span
	for _, s := range spans {
		if n := len(out); n > 0 && (!out[n-1].to.Less(s.from) || out[n-1].to.Next() == s.from) {
			if out[n-1].to.Less(s.to) {
				out[n-1].to = s.to
			}
			continue
		}
		out = append(out, s)
	}
	return out
}

// portSpan is a range of ports, both ends included.
type portSpan struct{ from, to uint16 }

func unionPorts(spans []portSpan) []portSpan {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b portSpan) int { return int(a.from) - int(b.from) })
	var out []portSpan
	for _, s := range spans {
		if n := len(out); n > 0 && int(s.from) <= int(out[n-1].to)+1 {
			out[n-1].to = max(out[n-1].to, s.to)
			continue
		}
		out = append(out, s)
	}
	return out
}
