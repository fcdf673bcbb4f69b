package e2e

import (
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/rig"
)

// leastFlows is what one Service gives: both versions of IP, 14 ways to ask, both sides.
const leastFlows = 2 * 14 * 2

// stays says that a flow goes where it went.
const stays = "stays with "

// flow is a UDP client that goes on from one port.
type flow struct {
	q     question
	side  int
	conn  net.Conn
	first string // who answered
}

// flowsMoveOn: UDP clients that go on sending from one port leave an endpoint that goes, for another one
// or for a refusal, however they asked.
func (o *oracle) flowsMoveOn() {
	o.Helper()
	var specs []*spec
	for _, local := range []bool{false, true} {
		name := map[bool]string{false: "flow", true: "flow-local"}[local]
		specs = append(specs, &spec{
			Name: name, Type: corev1.ServiceTypeLoadBalancer, Families: bothFamilies,
			Ports: []portSpec{{Name: "p", Protocol: corev1.ProtocolUDP, Port: 80, First: oraclePorts[0], Second: oraclePorts[1]}}, External: local, Internal: local,
			ExternalIP: true, Balanced: "VIP", Endpoints: []endpointSpec{{Role: "here-0"}},
		})
	}
	o.put(specs)
	ending := endpointSpec{Role: "here-1", Second: true, Ready: ptr.To(false), Serving: ptr.To(true), Terminating: ptr.To(true)}
	for _, step := range []struct {
		next  []endpointSpec
		stays bool
	}{
		{[]endpointSpec{{Role: "here-1"}}, false},
		{[]endpointSpec{{Role: "here-1", Second: true}}, false},
		{[]endpointSpec{ending, {Role: "there-0"}}, true},
		{[]endpointSpec{{Role: "here-0"}}, false}, // each step leads elsewhere than the one before
		{[]endpointSpec{{Role: "there-0"}}, false},
		{nil, false},
	} {
		flows := o.openFlows(specs)
		if len(flows) < leastFlows {
			o.Errorf("%d flows are open, want %d at least", len(flows), leastFlows)
		}
		for _, s := range specs {
			s.Endpoints = step.next
		}
		o.put(specs)
		o.followFlows(flows, step.stays)
	}
	for _, s := range specs {
		s.Gone = true
	}
	o.put(specs)
}

// far says whether all endpoints are on the other node.
func (s *spec) far() bool {
	return !slices.ContainsFunc(s.Endpoints, func(e endpointSpec) bool { return strings.HasPrefix(e.Role, "here") })
}

// openFlows opens one for each question that has an answer.
func (o *oracle) openFlows(specs []*spec) (out []*flow) {
	o.Helper()
	for _, s := range specs {
		for _, q := range s.questions(o.live[0][s.Name]) {
			if q.port < 0 || q.front == frontUnused || q.from == "here-0" || s.local() && s.far() {
				continue
			}
			for k := range o.sides {
				if f := o.openFlow(q, k); f != nil {
					out = append(out, f)
				}
			}
		}
	}
	return out
}

func (o *oracle) openFlow(q question, k int) *flow {
	o.Helper()
	f := &flow{q: q, side: k}
	s := o.sides[k]
	to := q.address(s, o.live[k][q.spec.Name])
	err := rig.InNetns(s.place(q.from).netns, func() (err error) {
		f.conn, err = (&net.Dialer{FallbackDelay: -1}).DialContext(o.Context(), "udp", to.String())
		return err
	})
	if err != nil {
		o.Fatal(err)
	}
	o.Cleanup(func() { _ = f.conn.Close() })
	if f.first, _ = s.hear(f.conn, "udp", time.Now().Add(20*time.Second)); f.first == "" {
		return nil
	}
	return f
}

// followFlows compares where the flows of both sides go now: where they went before, if that
// still serves.
func (o *oracle) followFlows(flows []*flow, still bool) {
	o.Helper()
	ends := make([]string, len(flows))
	var group sync.WaitGroup
	for i, f := range flows {
		group.Go(func() { ends[i] = o.follow(f, still) })
	}
	group.Wait()
	got := map[question][2]answer{}
	for i, f := range flows {
		both := got[f.q]
		both[f.side] = answer{ends[i]}
		got[f.q] = both
		_ = f.conn.Close()
	}
	for q, both := range got {
		if strings.HasPrefix(both[0].String(), stays) != still || both[0].String() != both[1].String() && !o.excuse(q, both) {
			o.differ(q, "the endpoint of a UDP flow", both)
		}
	}
}

// follow sends until somebody else answers than before, or an error does; where it may stay, not for long.
func (o *oracle) follow(f *flow, still bool) (last string) {
	patience := 20 * time.Second
	if still {
		patience = 5 * time.Second
	}
	for end := time.Now().Add(patience); time.Now().Before(end); {
		server, said := o.sides[f.side].hear(f.conn, "udp", time.Now().Add(time.Second))
		switch {
		case server == f.first:
			last = stays + server
		case server != "" || said != "no answer":
			return said
		default:
			last = said
		}
		select {
		case <-o.Context().Done():
			return "the test is over"
		case <-time.After(100 * time.Millisecond):
		}
	}
	return last
}
