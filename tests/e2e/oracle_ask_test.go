package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/tests/rig"
)

// question is what both sides are asked.
type question struct {
	spec  *spec
	port  int // of the spec; -1 asks the health check
	ipv6  bool
	front string // see fronts
	from  string // role
}

func (q question) String() string {
	family := "IPv4"
	if q.ipv6 {
		family = "IPv6"
	}
	if q.port < 0 {
		return fmt.Sprintf("%s: %s of %s, %s", q.spec.Name, q.front, family, q.from)
	}
	p := q.spec.Ports[q.port]
	return fmt.Sprintf("%s: %s asks %s port %d/%s by %s", q.spec.Name, q.from, q.front, p.Port, p.Protocol, family)
}

// Sorts of addresses that are asked.
const (
	frontCluster  = "cluster IP"
	frontUnused   = "an unused port of the cluster IP"
	frontExternal = "external IP"
	frontBalancer = "load balancer's IP"
	frontNode     = "node port"
	frontHealth   = "health check node port"
)

var fronts = []string{frontCluster, frontUnused, frontExternal, frontBalancer, frontNode}

// unusedPort is no Service's.
const unusedPort = 9

// questions are all that can be asked of a Service; live is the object of a side.
func (s *spec) questions(live *corev1.Service) (out []question) {
	if s.Headless {
		return nil
	}
	for _, family := range s.Families {
		ipv6 := family == corev1.IPv6Protocol
		for port := range s.Ports {
			for _, front := range fronts {
				if q := (question{s, port, ipv6, front, ""}); q.address(nil, live).IsValid() {
					out = append(out, q.fromAll()...)
				}
			}
		}
		if live.Spec.HealthCheckNodePort > 0 {
			out = append(out, question{s, -1, ipv6, frontHealth, "outside"})
		}
	}
	return out
}

func (q question) fromAll() (out []question) {
	from := []string{"here-client", "here-0", "here-node", "outside"}
	if q.front == frontNode {
		from = append(from, "there-node", "there-client")
	}
	for _, q.from = range from {
		if q.from != "here-0" || !q.spec.Affinity { // whether a pod stays with itself is by chance
			out = append(out, q)
		}
	}
	return out
}

// address is what the question asks; without a side only whether there is one counts.
func (q question) address(s *side, live *corev1.Service) netip.AddrPort {
	if s == nil {
		s = &side{numbers: map[string]byte{}, places: map[string]*place{"here-node": {v4: netip.IPv4Unspecified(), v6: netip.IPv6Unspecified()}}}
	}
	node := s.place("here-node").addr(q.ipv6)
	if q.port < 0 {
		return netip.AddrPortFrom(node, uint16(live.Spec.HealthCheckNodePort))
	}
	family, port := corev1.IPv4Protocol, live.Spec.Ports[q.port]
	if q.ipv6 {
		family = corev1.IPv6Protocol
	}
	number := uint16(port.Port)
	switch q.front {
	case frontUnused:
		number = unusedPort
		fallthrough
	case frontCluster:
		for _, text := range live.Spec.ClusterIPs {
			if a, err := netip.ParseAddr(text); err == nil && a.Is6() == q.ipv6 {
				return netip.AddrPortFrom(a, number)
			}
		}
	case frontExternal:
		if q.spec.ExternalIP {
			return netip.AddrPortFrom(s.external(q.spec.Name, family, 1), number)
		}
	case frontBalancer:
		if q.spec.Balanced != "" {
			return netip.AddrPortFrom(s.external(q.spec.Name, family, 2), number)
		}
	case frontNode:
		if port.NodePort > 0 {
			return netip.AddrPortFrom(node, uint16(port.NodePort))
		}
	}
	return netip.AddrPort{}
}

// answer is the set of what happened, sorted.
type answer []string

func (a answer) String() string { return strings.Join(a, "; ") }

// reached says whether any server answered.
func (a answer) reached() bool { return strings.Contains(a.String(), " sees ") }

// ask asks up to n times; patience bounds each time.
func (w *oracleWorld) ask(s *side, q question, live *corev1.Service, n int, patience time.Duration) (out answer) {
	to := q.address(s, live)
	if q.port < 0 {
		return answer{w.health(s, q, to, patience)}
	}
	network := strings.ToLower(string(q.spec.Ports[q.port].Protocol))
	from := s.place(q.from)
	many := q.spec.Affinity && q.from == "outside"
	var servers []string
	err := rig.InNetns(from.netns, func() error {
		for i := range n {
			source := netip.Addr{}
			if many {
				source = w.many[q.ipv6][i/2%manyAddresses]
			}
			server, said := w.once(s, from, network, source, to, patience)
			servers = append(servers, server)
			if out = append(out, said); server == "" {
				break // nobody answers the others either, but they take long
			}
		}
		return nil
	})
	if err != nil {
		out = append(out, err.Error())
	}
	if q.spec.Affinity {
		out = kept(out, servers, many)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// kept says whether clients stayed: each of many was asked for twice, else there is one client, and which
// endpoint it has is by chance.
func kept(said []string, servers []string, many bool) (out answer) {
	for i, text := range said {
		server := servers[i]
		if !many && server != "" {
			text = strings.Replace(text, server, "an endpoint", 1)
		}
		out = append(out, text)
		if first := i - i%2; many && server != servers[first] || !many && server != servers[0] {
			out = append(out, "a client does not stay")
		}
	}
	return out
}

// once is one connection or datagram; server is the role of who answered, if anybody did.
func (w *oracleWorld) once(s *side, from *place, network string, source netip.Addr, to netip.AddrPort, patience time.Duration) (server, said string) {
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	d := net.Dialer{FallbackDelay: -1}
	if source.IsValid() {
		d.LocalAddr = map[string]net.Addr{"tcp": net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0)), "udp": net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0))}[network]
	}
	c, err := d.DialContext(ctx, network, to.String())
	if err != nil {
		return "", outcome(err)
	}
	defer c.Close()
	end, _ := ctx.Deadline()
	return s.hear(c, network, end)
}

// hear reads who answers and whom they see; a datagram is sent until there is an answer.
func (s *side) hear(c net.Conn, network string, end time.Time) (server, said string) {
	var text []byte
	var err error
	if network == "tcp" {
		_ = c.SetDeadline(end)
		text, err = io.ReadAll(c)
	} else {
		text, err = datagram(c, end)
	}
	if err != nil {
		return "", outcome(err)
	}
	own := c.LocalAddr().String()
	return s.tell(string(text), netip.MustParseAddrPort(own).Addr().Unmap())
}

// datagram sends again every now and then: one may be lost.
func datagram(c net.Conn, end time.Time) (text []byte, err error) {
	buf := make([]byte, 128)
	for again := true; again; again = time.Now().Before(end) {
		if _, err = c.Write([]byte("?")); err != nil {
			return nil, err
		}
		_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		var n int
		if n, err = c.Read(buf); err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return buf[:n], err
		}
	}
	return nil, err
}

// tell translates an answer: servers and clients by their roles.
func (s *side) tell(text string, own netip.Addr) (server, said string) {
	at, from, _ := strings.Cut(text, " ")
	a, err := netip.ParseAddrPort(at)
	client, err2 := netip.ParseAddr(from)
	if err := errors.Join(err, err2); err != nil {
		return "", err.Error()
	}
	server = fmt.Sprintf("%s:%d", s.roles[a.Addr()], a.Port())
	sees := s.roles[client]
	switch {
	case client == own:
		sees = "the client"
	case sees == "":
		sees = client.String()
	}
	return server, server + " sees " + sees
}

func outcome(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return "refused"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer"
	}
	var number unix.Errno
	if errors.As(err, &number) {
		return number.Error()
	}
	return err.Error()
}

// health is what the health check node port says.
func (w *oracleWorld) health(s *side, q question, to netip.AddrPort, patience time.Duration) string {
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	dial := func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = rig.InNetns(w.outside.netns, func() error {
			c, err = (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+to.String()+"/", http.NoBody)
	if err != nil {
		return err.Error()
	}
	response, err := client.Do(request)
	if err != nil {
		return outcome(err)
	}
	defer response.Body.Close()
	var body any
	err = json.NewDecoder(response.Body).Decode(&body)
	text, _ := json.Marshal(body)
	return strings.ReplaceAll(fmt.Sprintf("%d, weight %s, %s, sniff %s, %s (%v)", response.StatusCode, response.Header.Get("X-Load-Balancing-Endpoint-Weight"),
		response.Header.Get("Content-Type"), response.Header.Get("X-Content-Type-Options"), text, err), s.prefix+q.spec.Name, q.spec.Name)
}
