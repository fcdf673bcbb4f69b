// Package apiclient connects the agent to the cluster's API servers: several of them with
// fail-over, connections that notice a silent peer in seconds, and a client certificate
// that may change at any time. It must not know what is asked of the API.
package apiclient

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vk-metal/vk-metal/internal/version"
)

// Options say whom to trust and as whom to speak.
type Options struct {
	// Servers are https://host:port URLs.
	Servers []string
	// CA verifies the servers.
	CA *x509.CertPool
	// Certificate returns the newest client certificate; it is asked at each handshake. While
	// it returns nil, requests fail with ErrNoCertificate: without one, the API server would
	// take us for an anonymous user.
	Certificate func() *tls.Certificate
	// BearerToken is sent when not empty.
	BearerToken string
	Log         *slog.Logger
}

// ErrNoCertificate is the end of a request while there is no valid client certificate.
var ErrNoCertificate = errors.New("no valid client certificate: it has not been issued yet, or could not be renewed in time; in that case run vk-metal join with a new token")

// Client is a way to the API servers for one identity.
type Client struct {
	*Failover
	certificate func() *tls.Certificate // nil for other credentials
	token       string
}

// RoundTrip implements http.RoundTripper.
func (c *Client) RoundTrip(req *http.Request) (*http.Response, error) {
	if c.certificate != nil && c.certificate() == nil {
		if req.Body != nil {
			_ = req.Body.Close() // as a RoundTripper must
		}
		return nil, ErrNoCertificate
	}
	return c.Failover.RoundTrip(req)
}

// New makes a Client; it does not connect yet.
func New(o Options) (*Client, error) {
	if o.CA == nil {
		return nil, errors.New("connect to the API server: no CA to verify it with")
	}
	config := &tls.Config{RootCAs: o.CA, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	if o.Certificate != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert := o.Certificate(); cert != nil {
				return cert, nil
			}
			return &tls.Certificate{}, nil
		}
	}
	failover, err := NewFailover(o.Servers, config, o.Log)
	if err != nil {
		return nil, err
	}
	return &Client{Failover: failover, certificate: o.Certificate, token: o.BearerToken}, nil
}

// FromKubeconfig makes a Client with the credentials of a kubeconfig's current context.
// servers replaces its server when not empty.
func FromKubeconfig(path string, servers []string, log *slog.Logger) (*Client, error) {
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("load kubeconfig %s: %w", path, err)
	}
	if config.ExecProvider != nil || config.AuthProvider != nil || config.Username != "" {
		return nil, fmt.Errorf("load kubeconfig %s: only client certificates and tokens are supported", path)
	}
	if len(servers) == 0 {
		servers = []string{config.Host}
	}
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, fmt.Errorf("load kubeconfig %s: %w", path, err)
	}
	if tlsConfig == nil || tlsConfig.InsecureSkipVerify {
		return nil, fmt.Errorf("load kubeconfig %s: it must name a certificate authority", path)
	}
	tlsConfig.NextProtos = []string{"h2", "http/1.1"}
	failover, err := NewFailover(servers, tlsConfig, log)
	if err != nil {
		return nil, err
	}
	token, err := bearerToken(config)
	return &Client{Failover: failover, token: token}, err
}

func bearerToken(config *rest.Config) (string, error) {
	if config.BearerTokenFile == "" {
		return config.BearerToken, nil
	}
	data, err := os.ReadFile(config.BearerTokenFile)
	if err != nil {
		return "", fmt.Errorf("read bearer token: %w", err)
	}
	return string(data), nil
}

// RESTConfig is a new client-go configuration over this Client: protobuf, and the kubelet's
// rate limits (50 a second, bursts of 100).
func (c *Client) RESTConfig() *rest.Config {
	return &rest.Config{
		Host:        "https://" + c.servers[0],
		Transport:   c,
		BearerToken: c.token,
		UserAgent:   version.UserAgent(),
		QPS:         50,
		Burst:       100,
		ContentConfig: rest.ContentConfig{
			ContentType:        runtime.ContentTypeProtobuf,
			AcceptContentTypes: runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON,
		},
	}
}

// LoadCA reads a file of PEM certificates.
func LoadCA(path string) (*x509.CertPool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read cluster CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("read cluster CA: %s holds no certificate", path)
	}
	return pool, nil
}
