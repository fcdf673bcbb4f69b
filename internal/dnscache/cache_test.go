package dnscache

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func query(name string) *dns.Msg { return new(dns.Msg).SetQuestion(name, dns.TypeA) }

// answerOf is an answer to a query with these records; "!" begins those of the authority.
func answerOf(t *testing.T, q *dns.Msg, records ...string) *dns.Msg {
	t.Helper()
	m := new(dns.Msg).SetReply(q)
	for _, text := range records {
		rest, authority := strings.CutPrefix(text, "!")
		rr, err := dns.NewRR(rest)
		if err != nil {
			t.Fatal(err)
		}
		if authority {
			m.Ns = append(m.Ns, rr)
		} else {
			m.Answer = append(m.Answer, rr)
		}
	}
	return m
}

func TestLifetime(t *testing.T) {
	const soa = "!cluster.local. 60 IN SOA ns. h. 1 2 3 4 3"
	for name, c := range map[string]struct {
		rcode   int
		records []string
		want    time.Duration
	}{
		"the shortest":             {0, []string{"a. 20 IN CNAME b.", "b. 7 IN A 192.0.2.1"}, 7 * time.Second},
		"at most":                  {0, []string{"a. 3600 IN A 192.0.2.1"}, maxTTL},
		"never":                    {0, []string{"a. 0 IN A 192.0.2.1"}, 0},
		"no such name":             {dns.RcodeNameError, []string{soa}, 3 * time.Second},
		"no such record":           {0, []string{soa}, 3 * time.Second},
		"nothing, at most":         {0, []string{"!a. 60 IN SOA ns. h. 1 2 3 4 3600"}, maxNegativeTTL},
		"nothing without a zone":   {dns.RcodeNameError, nil, 0},
		"the server cannot answer": {dns.RcodeServerFailure, []string{soa}, 0},
		"an alias of no such name": {dns.RcodeNameError, []string{"a. 20 IN CNAME b.", soa}, 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			m := answerOf(t, query("a."), c.records...)
			m.Rcode = c.rcode
			if got := lifetime(m); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

func TestTimes(t *testing.T) {
	c, now := newCache(10), time.Unix(1000, 0)
	q := query("A.example.")
	k := keyOf(q, "s")
	c.put(k, answerOf(t, q, "A.example. 20 IN A 192.0.2.1"), now)
	if lower := keyOf(query("a.example."), "s"); lower != k {
		t.Error("the case of letters matters")
	}
	for _, step := range []struct {
		after time.Duration
		ttl   uint32
		fresh bool
	}{{0, 20, true}, {12500 * time.Millisecond, 8, true}, {20 * time.Second, staleTTL, false}, {time.Hour, staleTTL, false}} {
		m, fresh := c.get(k, now.Add(step.after))
		if m == nil || m.Answer[0].Header().Ttl != step.ttl || fresh != step.fresh {
			t.Errorf("after %s: %v %v, want %d %v", step.after, m, fresh, step.ttl, step.fresh)
		}
	}
	if m, _ := c.get(k, now.Add(time.Hour+20*time.Second)); m != nil || c.entries.Len() != 0 {
		t.Errorf("kept for ever: %v", m)
	}
}

// TestKeys: what changes the answer is part of the key.
func TestKeys(t *testing.T) {
	plain := keyOf(query("a."), "s")
	for name, change := range map[string]func(m *dns.Msg){
		"type":  func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA },
		"class": func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
		"DO":    func(m *dns.Msg) { m.SetEdns0(1232, true) },
		"CD":    func(m *dns.Msg) { m.CheckingDisabled = true },
	} {
		m := query("a.")
		change(m)
		if keyOf(m, "s") == plain {
			t.Errorf("%s does not count", name)
		}
	}
	m := query("a.")
	m.SetEdns0(1232, false)
	if keyOf(m, "s") != plain {
		t.Error("the size of buffers counts")
	}
}

func TestBounded(t *testing.T) {
	c := newCache(3)
	for i := range 10 {
		q := query(fmt.Sprintf("n%d.", i))
		c.put(keyOf(q, "s"), answerOf(t, q, q.Question[0].Name+" 20 IN A 192.0.2.1"), time.Now())
	}
	if c.entries.Len() != 3 {
		t.Errorf("%d entries", c.entries.Len())
	}
}

func TestTruncatedIsNotKept(t *testing.T) {
	c, q := newCache(3), query("a.")
	m := answerOf(t, q, "a. 20 IN A 192.0.2.1")
	m.Truncated = true
	c.put(keyOf(q, "s"), m, time.Now())
	if c.entries.Len() != 0 {
		t.Error("kept")
	}
}
