package loadbalancer

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/vk-metal/vk-metal/internal/config"
)

func pools(t interface{ Fatal(...any) }, text string) []config.Pool {
	p, err := config.ParsePools("p", []byte("apiVersion: vk-metal.io/v1alpha1\nkind: AddressPools\npools:\n"+text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func addrs(texts ...string) (out []netip.Addr) {
	for _, a := range texts {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func svc(name string, age int, change func(*Service)) Service {
	s := Service{Namespace: "x", Name: name, Created: time.Unix(int64(1000+age), 0), Families: []bool{true}, Ports: []string{"TCP/80"}}
	if change != nil {
		change(&s)
	}
	return s
}

func TestAllocate(t *testing.T) {
	two := "- {name: a, ranges: [192.0.2.10-192.0.2.11, \"2001:db8::/126\"]}\n"
	shares := func(port string) func(*Service) {
		return func(s *Service) { s.SharingKey, s.Ports = "k", []string{port} }
	}
	for name, tc := range map[string]struct {
		pools    string
		services []Service
		want     map[string][]netip.Addr
		err      map[string]error
	}{
		"older ones first": {two, []Service{svc("b", 2, nil), svc("a", 1, nil)}, map[string][]netip.Addr{"a": addrs("192.0.2.10"), "b": addrs("192.0.2.11")}, nil},
		"what one has stays": {
			two,
			[]Service{svc("a", 1, nil), svc("b", 2, func(s *Service) { s.Have = addrs("192.0.2.10") })},
			map[string][]netip.Addr{"a": addrs("192.0.2.11"), "b": addrs("192.0.2.10")},
			nil,
		},
		"exhausted": {
			two,
			[]Service{svc("a", 1, nil), svc("b", 2, nil), svc("c", 3, nil)},
			map[string][]netip.Addr{"a": addrs("192.0.2.10"), "b": addrs("192.0.2.11"), "c": nil},
			map[string]error{"c": ErrExhausted},
		},
		"two have one": {
			two,
			[]Service{svc("a", 1, func(s *Service) { s.Have = addrs("192.0.2.10") }), svc("b", 2, func(s *Service) { s.Have = addrs("192.0.2.10") })},
			map[string][]netip.Addr{"a": addrs("192.0.2.10"), "b": addrs("192.0.2.11")},
			map[string]error{"b": ErrTaken},
		},
		"requested": {
			two,
			[]Service{svc("a", 1, func(s *Service) { s.Requested = addrs("192.0.2.11") }), svc("b", 2, func(s *Service) { s.Requested = addrs("192.0.2.11") })},
			map[string][]netip.Addr{"a": addrs("192.0.2.11"), "b": nil},
			map[string]error{"b": ErrTaken},
		},
		"requested and in no pool": {two, []Service{svc("a", 1, func(s *Service) { s.Requested = addrs("198.51.100.1") })}, map[string][]netip.Addr{"a": nil}, map[string]error{"a": ErrNoPool}},
		"request changed":          {two, []Service{svc("a", 1, func(s *Service) { s.Requested, s.Have = addrs("192.0.2.11"), addrs("192.0.2.10") })}, map[string][]netip.Addr{"a": addrs("192.0.2.11")}, nil},
		"shared": {
			two,
			[]Service{svc("a", 1, shares("TCP/80")), svc("b", 2, shares("TCP/443")), svc("c", 3, shares("TCP/80"))},
			map[string][]netip.Addr{"a": addrs("192.0.2.10"), "b": addrs("192.0.2.10"), "c": addrs("192.0.2.11")},
			nil,
		},
		"not shared with another namespace": {
			two,
			[]Service{svc("a", 1, shares("TCP/80")), svc("b", 2, func(s *Service) { shares("TCP/443")(s); s.Namespace = "y" })},
			map[string][]netip.Addr{"a": addrs("192.0.2.10"), "b": addrs("192.0.2.11")},
			nil,
		},
		"local with another selector": {
			two,
			[]Service{svc("a", 1, func(s *Service) { shares("TCP/80")(s); s.Local, s.Endpoints = true, "a=1" }), svc("b", 2, func(s *Service) { shares("TCP/443")(s); s.Local, s.Endpoints = true, "a=2" })},
			map[string][]netip.Addr{"a": addrs("192.0.2.10"), "b": addrs("192.0.2.11")},
			nil,
		},
		"both families": {two, []Service{svc("a", 1, func(s *Service) { s.Families = []bool{false, true} })}, map[string][]netip.Addr{"a": addrs("2001:db8::", "192.0.2.10")}, nil},
		"second family missing": {"- {name: a, ranges: [192.0.2.10]}\n", []Service{
			svc("a", 1, func(s *Service) { s.Families = []bool{true, false} }),
		}, map[string][]netip.Addr{"a": addrs("192.0.2.10")}, nil},
		"both required": {
			"- {name: a, ranges: [192.0.2.10]}\n",
			[]Service{svc("a", 1, func(s *Service) { s.Families, s.Both = []bool{true, false}, true }), svc("b", 2, nil)},
			map[string][]netip.Addr{"a": nil, "b": addrs("192.0.2.10")},
			map[string]error{"a": ErrNoPool},
		},
		"not by itself":           {"- {name: a, ranges: [192.0.2.10], auto: false}\n", []Service{svc("a", 1, nil), svc("b", 2, func(s *Service) { s.Pool = "a" })}, map[string][]netip.Addr{"a": nil, "b": addrs("192.0.2.10")}, map[string]error{"a": ErrNoPool}},
		"another namespace's":     {"- {name: a, ranges: [192.0.2.10], namespaces: [y]}\n", []Service{svc("a", 1, nil)}, map[string][]netip.Addr{"a": nil}, map[string]error{"a": ErrNoPool}},
		"in no pool any more":     {two, []Service{svc("a", 1, func(s *Service) { s.Have = addrs("198.51.100.9") })}, map[string][]netip.Addr{"a": addrs("198.51.100.9")}, nil},
		"the pool changed":        {two + "- {name: b, ranges: [192.0.2.20]}\n", []Service{svc("a", 1, func(s *Service) { s.Have, s.Pool = addrs("192.0.2.10"), "b" })}, map[string][]netip.Addr{"a": addrs("192.0.2.20")}, nil},
		"a wish that is unread":   {two, []Service{svc("a", 1, func(s *Service) { s.Bad = errBad })}, map[string][]netip.Addr{"a": nil}, map[string]error{"a": errBad}},
		"a family that went away": {two, []Service{svc("a", 1, func(s *Service) { s.Have = addrs("192.0.2.10", "2001:db8::") })}, map[string][]netip.Addr{"a": addrs("192.0.2.10")}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := Allocate(pools(t, tc.pools), tc.services)
			for _, s := range tc.services {
				d := got[s.key()]
				if !slices.Equal(d.Addrs, tc.want[s.Name]) {
					t.Errorf("%s has %v, want %v", s.Name, d.Addrs, tc.want[s.Name])
				}
				if want := tc.err[s.Name]; !errors.Is(d.Err, want) || want == nil && d.Err != nil {
					t.Errorf("%s: error %v, want %v", s.Name, d.Err, want)
				}
			}
		})
	}
}

var errBad = errors.New("bad")

// TestNobodyTwice: whatever Services have and want, nobody shares who may not, what was
// decided is stable, and an address that could be kept is.
func TestNobodyTwice(t *testing.T) {
	p := pools(t, "- {name: a, ranges: [192.0.2.0-192.0.2.5, \"2001:db8::/126\"]}\n- {name: b, ranges: [198.51.100.0/30]}\n")
	any := []string{"192.0.2.0", "192.0.2.1", "192.0.2.5", "198.51.100.1", "2001:db8::", "203.0.113.1"}
	rapid.Check(t, func(t *rapid.T) {
		var list []Service
		for i := range rapid.IntRange(1, 14).Draw(t, "services") {
			list = append(list, svc(fmt.Sprint(i), rapid.IntRange(0, 3).Draw(t, "age"), func(s *Service) {
				s.Families = rapid.SampledFrom([][]bool{{true}, {false}, {true, false}}).Draw(t, "families")
				s.Both = len(s.Families) == 2 && rapid.Bool().Draw(t, "both")
				s.SharingKey = rapid.SampledFrom([]string{"", "k", "l"}).Draw(t, "key")
				s.Ports = []string{rapid.SampledFrom([]string{"TCP/80", "TCP/443", "UDP/53"}).Draw(t, "port")}
				s.Pool = rapid.SampledFrom([]string{"", "", "b"}).Draw(t, "pool")
				if rapid.Bool().Draw(t, "asks") {
					s.Requested = addrs(rapid.SampledFrom(any).Draw(t, "requested"))
				}
				if rapid.Bool().Draw(t, "has") {
					s.Have = addrs(rapid.SampledFrom(any).Draw(t, "have"))
				}
			}))
		}
		first := Allocate(p, list)
		for i := range list {
			list[i].Have = first[list[i].key()].Addrs
			for j := range i {
				for _, a := range list[i].Have {
					alone := list[i].SharingKey == "" || list[i].SharingKey != list[j].SharingKey || list[i].Ports[0] == list[j].Ports[0]
					if alone && slices.Contains(list[j].Have, a) {
						t.Fatalf("%s is given to %s and %s", a, list[i].Name, list[j].Name)
					}
				}
			}
		}
		second := Allocate(p, list)
		for key, d := range first {
			for _, a := range d.Addrs {
				if !slices.Contains(second[key].Addrs, a) {
					t.Fatalf("%s had %v and then %v", key, d.Addrs, second[key].Addrs)
				}
			}
		}
	})
}
