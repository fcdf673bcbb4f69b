package kubeletapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-base/metrics/prometheus/slis"
)

// Options say what is served where, and to whom.
type Options struct {
	NodeName string
	// Listen is the address and port; an unspecified address means all.
	Listen netip.AddrPort
	// ClientCA is a file with the CA of client certificates; changes are followed.
	ClientCA string
	// Certificate returns the serving certificate for a handshake.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Client reviews tokens and access.
	Client kubernetes.Interface

	Pods    Pods
	Streams Streams
	// Stats may be nil: then there are no statistics.
	Stats Stats
	// Metrics are shown at /metrics beside those of the process; may be nil.
	Metrics prometheus.Gatherer
	// Cadvisor has the metrics of /metrics/cadvisor, Probes those of /metrics/probes; each may
	// be nil.
	Cadvisor, Probes prometheus.Gatherer
	// Health says what is wrong with the agent; may be nil.
	Health func() error
	// Config is shown by /configz, a KubeletConfiguration; may be nil.
	Config any
	// Logs serves the server's own logs, by paths relative to /logs/; may be nil.
	Logs http.Handler
	// Verbosity sets how much the agent logs, in klog's levels, until it is restarted; may be nil.
	Verbosity func(level int)
	Log       *slog.Logger
}

// Server is the node's API. It is a task.Task.
type Server struct {
	o     Options
	ca    *dynamiccertificates.DynamicFileCAContent
	auth  *auth
	asked *requests
	ready chan struct{}
	addr  net.Addr
}

// New makes a Server; it listens in Run.
func New(o Options) (*Server, error) {
	ca, err := dynamiccertificates.NewDynamicCAContentFromFile("client-ca", o.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("read client CA: %w", err)
	}
	a, err := newAuth(o.NodeName, o.Client, ca, o.Log)
	if err != nil {
		return nil, err
	}
	return &Server{o: o, ca: ca, auth: a, asked: newRequests(), ready: make(chan struct{})}, nil
}

// String implements task.Task.
func (s *Server) String() string { return "kubelet-api" }

// Ready is closed once the server listens.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Addr is where it listens, once it is ready.
func (s *Server) Addr() net.Addr { return s.addr }

// Run serves until ctx ends. Streams that are open then are cut: the programs they speak
// to run on.
func (s *Server) Run(ctx context.Context) error {
	listener, err := net.Listen("tcp", listenAddress(s.o.Listen))
	if err != nil {
		return fmt.Errorf("listen for the node's API: %w", err)
	}
	s.addr = listener.Addr()
	go s.ca.Run(ctx, 1)
	server := &http.Server{
		Handler:           s.asked.count(s.auth.protect(s.routes())),
		ReadHeaderTimeout: 32 * time.Second,
		IdleTimeout:       90 * time.Second,
		MaxHeaderBytes:    1 << 20,
		ErrorLog:          slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
		TLSConfig: &tls.Config{
			MinVersion:     tls.VersionTLS12,
			GetCertificate: s.o.Certificate,
			// The authenticator verifies: without a certificate a token may do.
			ClientAuth: tls.RequestClientCert,
			NextProtos: []string{"h2", "http/1.1"},
		},
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	close(s.ready)
	if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the node's API: %w", err)
	}
	return nil
}

// listenAddress listens on IPv4 and IPv6 for an unspecified address.
func listenAddress(addr netip.AddrPort) string {
	if addr.Addr().IsUnspecified() || !addr.Addr().IsValid() {
		return fmt.Sprintf(":%d", addr.Port())
	}
	return addr.String()
}

// routes are a kubelet's paths.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	healthz.InstallHandler(mux, healthz.PingHealthz, healthz.LogHealthz, healthz.NamedCheck("syncloop", s.healthy))
	slis.SLIMetricsWithReset{}.Install(mux)
	mux.HandleFunc("GET /pods", s.pods)
	mux.HandleFunc("GET /pods/", s.pods)
	mux.HandleFunc("GET /runningpods", s.runningPods)
	mux.HandleFunc("GET /runningpods/", s.runningPods)
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.containerLogs)
	for _, method := range []string{"GET", "POST"} {
		mux.HandleFunc(method+" /exec/{namespace}/{pod}/{container}", s.exec)
		mux.HandleFunc(method+" /exec/{namespace}/{pod}/{uid}/{container}", s.exec)
		mux.HandleFunc(method+" /attach/{namespace}/{pod}/{container}", s.attach)
		mux.HandleFunc(method+" /attach/{namespace}/{pod}/{uid}/{container}", s.attach)
		mux.HandleFunc(method+" /portForward/{namespace}/{pod}", s.portForward)
		mux.HandleFunc(method+" /portForward/{namespace}/{pod}/{uid}", s.portForward)
	}
	mux.HandleFunc("POST /run/{namespace}/{pod}/{container}", s.run)
	mux.HandleFunc("POST /run/{namespace}/{pod}/{uid}/{container}", s.run)
	mux.HandleFunc("POST /checkpoint/{namespace}/{pod}/{container}", s.checkpoint)
	mux.HandleFunc("GET /stats/summary", s.summary)
	mux.HandleFunc("POST /stats/summary", s.summary)
	mux.Handle("GET /metrics", s.ownMetrics())
	mux.Handle("GET /metrics/resource", s.resourceMetrics())
	mux.Handle("GET /metrics/cadvisor", gathered(s.o.Cadvisor))
	mux.Handle("GET /metrics/probes", s.probeMetrics())
	mux.HandleFunc("GET /configz", s.configz)
	for path, handler := range map[string]http.HandlerFunc{ // as enableProfilingHandler, on by default
		"": pprof.Index, "cmdline": pprof.Cmdline, "profile": pprof.Profile, "symbol": pprof.Symbol, "trace": pprof.Trace,
	} {
		mux.HandleFunc("GET /debug/pprof/"+path, handler)
	}
	mux.HandleFunc("/debug/flags/v", s.setVerbosity)
	if s.o.Logs != nil {
		mux.Handle("GET /logs/", http.StripPrefix("/logs/", s.o.Logs))
	}
	return mux
}
