package dnscache

import (
	"strings"
	"time"

	"github.com/miekg/dns"
	"k8s.io/utils/lru"
)

// Bounds on how long answers are kept, as upstream's node-local cache has them: changes of
// the cluster must show.
const (
	maxTTL         = 30 * time.Second
	maxNegativeTTL = 5 * time.Second
	// staleFor is how long an answer may be given after its time when the cluster's DNS does
	// not answer, staleTTL what clients are told then (RFC 8767).
	staleFor = time.Hour
	staleTTL = 30
)

// key tells questions apart. Answers depend on DO and CD, too (RFC 4035, 3.2).
type key struct {
	name        string
	kind, class uint16
	do, cd      bool
	server      string
}

func keyOf(m *dns.Msg, server string) key {
	q := m.Question[0]
	k := key{name: strings.ToLower(q.Name), kind: q.Qtype, class: q.Qclass, cd: m.CheckingDisabled, server: server}
	if opt := m.IsEdns0(); opt != nil {
		k.do = opt.Do()
	}
	return k
}

// cache holds answers; it is safe for concurrent use.
type cache struct{ entries *lru.Cache }

type entry struct {
	msg    *dns.Msg
	stored time.Time
	ttl    time.Duration
}

func newCache(size int) *cache { return &cache{lru.New(size)} }

// get returns an answer whose TTLs are what is left; fresh is false for one past its time.
func (c *cache) get(k key, now time.Time) (msg *dns.Msg, fresh bool) {
	v, ok := c.entries.Get(k)
	if !ok {
		return nil, false
	}
	e := v.(entry)
	age := now.Sub(e.stored)
	if age >= e.ttl+staleFor {
		c.entries.Remove(k)
		return nil, false
	}
	msg, fresh = e.msg.Copy(), age < e.ttl
	left := uint32(staleTTL)
	if fresh {
		left = uint32((e.ttl - age + time.Second - 1) / time.Second)
	}
	for _, section := range [][]dns.RR{msg.Answer, msg.Ns, msg.Extra} {
		for _, rr := range section {
			h := rr.Header()
			if fresh {
				h.Ttl = min(h.Ttl, left)
			} else {
				h.Ttl = left
			}
		}
	}
	return msg, fresh
}

// put keeps an answer if it may be kept.
func (c *cache) put(k key, msg *dns.Msg, now time.Time) {
	ttl := lifetime(msg)
	if ttl <= 0 || msg.Truncated {
		return
	}
	kept := msg.Copy()
	kept.Extra = withoutOPT(kept.Extra)
	c.entries.Add(k, entry{kept, now, ttl})
}

// lifetime is how long an answer may be kept; 0 is not at all. One that says there is
// nothing needs the zone's SOA (RFC 2308, 5).
func lifetime(m *dns.Msg) time.Duration {
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0
	}
	if m.Rcode == dns.RcodeNameError || len(m.Answer) == 0 {
		for _, rr := range m.Ns {
			if soa, ok := rr.(*dns.SOA); ok {
				return min(time.Duration(min(soa.Hdr.Ttl, soa.Minttl))*time.Second, maxNegativeTTL)
			}
		}
		return 0
	}
	ttl := maxTTL
	for _, section := range [][]dns.RR{m.Answer, m.Ns, withoutOPT(m.Extra)} {
		for _, rr := range section {
			ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
		}
	}
	return ttl
}

// withoutOPT drops what belongs to one hop only.
func withoutOPT(list []dns.RR) []dns.RR {
	out := list[:0:0]
	for _, rr := range list {
		if rr.Header().Rrtype != dns.TypeOPT {
			out = append(out, rr)
		}
	}
	return out
}
