package services

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// Addresses that load balancers and tests know from Kubernetes' own proxy.
const (
	HealthAddress = ":10256"          // /healthz, /livez
	InfoAddress   = "127.0.0.1:10249" // /proxyMode
	// ProxyMode is what /proxyMode says: the rules are nftables'.
	ProxyMode = "nftables"
)

// staleAfter is how long changes may wait before the proxy calls itself unhealthy.
const staleAfter = time.Minute

// health answers load balancers: whether this node should get traffic at all, and whether
// it has endpoints of a Service with externalTrafficPolicy Local. Safe for concurrent use.
type health struct {
	ns  *linuxns.NS
	log *slog.Logger
	now func() time.Time

	mu      sync.Mutex
	waiting time.Time // since when a change waits; zero: none does
	applied time.Time
	leaving bool // the node
	checks  map[string]*check
	ports   map[uint16]*portServer
}

// check is what one Service's health check node port says.
type check struct {
	port  uint16
	ready int
}

// portServer serves the Service on one port.
type portServer struct {
	service string
	close   func()
}

func newHealth(ns *linuxns.NS, log *slog.Logger) *health {
	return &health{ns: ns, log: log, now: time.Now, checks: map[string]*check{}, ports: map[uint16]*portServer{}}
}

// checkOf says which port a Service's health is asked on (0: none) and how many endpoints
// of this node are ready; those that end do not count, however long they serve. A pod with
// addresses of both IP versions counts once: the version that has more endpoints is told.
func checkOf(s *corev1.Service, sliceList []*discoveryv1.EndpointSlice, node NodeFacts) check {
	if s == nil || !proxied(s) || s.Spec.Type != corev1.ServiceTypeLoadBalancer ||
		s.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		return check{}
	}
	c := check{port: uint16(s.Spec.HealthCheckNodePort)}
	ips := map[bool]map[netip.Addr]bool{false: {}, true: {}} // by being IPv6
	for _, slice := range sliceList {
		for i := range slice.Endpoints {
			ipv6 := slice.AddressType == discoveryv1.AddressTypeIPv6
			if e, ok := newEndpoint(&slice.Endpoints[i], 0, ipv6, node.Name); ok && e.ready && e.near {
				ips[ipv6][e.addr.Addr()] = true
			}
		}
	}
	c.ready = max(len(ips[false]), len(ips[true]))
	return c
}

// queued notes that a change waits.
func (h *health) queued() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting.IsZero() {
		h.waiting = h.now()
	}
}

// done notes that the kernel has everything.
func (h *health) done(leaving bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiting, h.applied, h.leaving = time.Time{}, h.now(), leaving
}

func (h *health) healthy() bool {
	return !h.applied.IsZero() && (h.waiting.IsZero() || h.now().Sub(h.waiting) < staleAfter)
}

// set notes what a Service's check says; port 0 ends it. Servers follow at serve.
func (h *health) set(service string, c check) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.port == 0 {
		delete(h.checks, service)
		return
	}
	h.checks[service] = &c
}

// serve starts and stops the servers of the checks. A port that cannot be had is tried
// again with the next call.
func (h *health) serve() {
	h.mu.Lock()
	defer h.mu.Unlock()
	wanted := map[uint16]string{}
	for service, c := range h.checks {
		if have, twice := wanted[c.port]; !twice || service < have {
			wanted[c.port] = service
		}
	}
	for port, s := range h.ports {
		if wanted[port] != s.service {
			s.close()
			delete(h.ports, port)
		}
	}
	for port, service := range wanted {
		if h.ports[port] != nil {
			continue
		}
		stop, err := h.listen(net.JoinHostPort("", strconv.Itoa(int(port))), h.checkHandler(service))
		if err != nil {
			h.log.Warn("cannot serve a health check node port", "service", service, "err", err)
			continue
		}
		h.ports[port] = &portServer{service, stop}
	}
}

// close ends all servers of checks.
func (h *health) close() {
	h.mu.Lock()
	clear(h.checks)
	h.mu.Unlock()
	h.serve()
}

// listen serves in the proxy's network namespace until stop is called.
func (h *health) listen(address string, handler http.Handler) (stop func(), err error) {
	var l net.Listener
	err = h.ns.Do(func() error {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen for health checks: %w", err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 1 << 13, IdleTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	return func() { _ = server.Close() }, nil
}

// run serves the fixed addresses until ctx ends; one that is taken is tried again.
func (h *health) run(ctx context.Context) {
	var wg sync.WaitGroup
	for address, handler := range map[string]http.Handler{HealthAddress: h.handler(), InfoAddress: h.handler()} {
		wg.Go(func() { h.keep(ctx, address, handler) })
	}
	wg.Wait()
	h.close()
}

const listenAgain = 10 * time.Second

func (h *health) keep(ctx context.Context, address string, handler http.Handler) {
	for first := true; ; first = false {
		stop, err := h.listen(address, handler)
		if err == nil {
			<-ctx.Done()
			stop()
			return
		}
		if first {
			h.log.Warn("cannot serve the service proxy's health", "address", address, "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(listenAgain):
		}
	}
}

// handler answers for the node.
func (h *health) handler() http.Handler {
	mux := http.NewServeMux()
	state := func(eligible bool) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			h.mu.Lock()
			now, applied, leaving, ok := h.now(), h.applied, h.leaving, h.healthy()
			h.mu.Unlock()
			body := map[string]any{"lastUpdated": applied.UTC().String(), "currentTime": now.UTC().String()}
			if eligible {
				body["nodeEligible"] = !leaving
				ok = ok && !leaving
			}
			reply(w, ok, body)
		}
	}
	mux.HandleFunc("GET /healthz", state(true))
	mux.HandleFunc("GET /livez", state(false))
	mux.HandleFunc("GET /proxyMode", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte(ProxyMode))
	})
	return mux
}

// checkHandler answers for one Service on every path.
func (h *health) checkHandler(service string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h.mu.Lock()
		ready, ok := 0, h.healthy()
		if c := h.checks[service]; c != nil {
			ready = c.ready
		}
		h.mu.Unlock()
		namespace, name, _ := strings.Cut(service, "/")
		w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(ready))
		reply(w, ok && ready > 0, map[string]any{
			"service":        map[string]string{"namespace": namespace, "name": name},
			"localEndpoints": ready, "serviceProxyHealthy": ok,
		})
	})
}

func reply(w http.ResponseWriter, ok bool, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(body)
}
