package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/vk-metal/vk-metal/tests/progress"
	"github.com/vk-metal/vk-metal/tests/rig"
)

// readyTimeout bounds one component's start; quiet machines need 0.3 to 2 seconds.
const readyTimeout = 2 * time.Minute

// pollInterval is the time between two questions whether a component is ready.
const pollInterval = 50 * time.Millisecond

// start brings all components up in order. Each waits for the one before it: a
// scheduler without an API server only fills its log.
func (cp *ControlPlane) start(ctx context.Context, printer *progress.Printer) error {
	for _, c := range cp.components() {
		step := printer.Step("start %s", c.name)
		if err := step.Done(cp.startComponent(ctx, c)); err != nil {
			return err
		}
	}
	return nil
}

func (cp *ControlPlane) startComponent(ctx context.Context, c component) error {
	process, err := cp.ensureProcess(ctx, cp.gated(c))
	if err != nil {
		return fmt.Errorf("start %s: %w", c.name, err)
	}
	client, err := cp.healthClient()
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		last := probe(ctx, client, c.health)
		if last == nil {
			return nil
		}
		if !process.Running() {
			return fmt.Errorf("start %s: it has exited, see %s", c.name, process.LogPath)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (log: %s)", c.name, errors.Join(ctx.Err(), last), process.LogPath)
		case <-time.After(pollInterval):
		}
	}
}

// ensureProcess starts the component unless it runs.
func (cp *ControlPlane) ensureProcess(ctx context.Context, c component) (*rig.Process, error) {
	process, err := cp.rig.Process(c.name)
	if err == nil && process.Running() {
		return process, nil
	}
	if err != nil && !errors.Is(err, rig.ErrNotFound) {
		return nil, err
	}
	return cp.rig.StartProcess(ctx, rig.ProcessSpec{
		Name:     c.name,
		Path:     filepath.Join(cp.opts.Programs, c.program),
		Argv:     append([]string{c.program}, c.args...),
		Endpoint: c.endpoint,
	})
}

// probe asks once; nil means ready.
func probe(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("ask for readiness: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4096))
	if err != nil {
		return fmt.Errorf("ask for readiness: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s: %s", url, response.Status, body)
	}
	return nil
}

// healthClient asks components whether they are ready.
func (cp *ControlPlane) healthClient() (*http.Client, error) {
	config, err := cp.clientTLS()
	if err != nil {
		return nil, err
	}
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: config}}, nil
}

// Etcd is where the cluster's etcd is and what to connect with.
func (cp *ControlPlane) Etcd() (url string, config *tls.Config, err error) {
	config, err = cp.clientTLS()
	return etcdURL(cp.endpoints[0].V4), config, err
}

// clientTLS trusts the rig's authorities. It shows etcd's client certificate to
// etcd, which asks for one, and nothing to the others: their health is public.
func (cp *ControlPlane) clientTLS() (*tls.Config, error) {
	pool := x509.NewCertPool()
	for _, name := range []string{"ca", "etcd-ca"} {
		data, err := os.ReadFile(cp.pki.Cert(name))
		if err != nil {
			return nil, fmt.Errorf("load an authority: %w", err)
		}
		pool.AppendCertsFromPEM(data)
	}
	cert, err := tls.LoadX509KeyPair(cp.pki.Cert("etcd-client"), cp.pki.Key("etcd-client"))
	if err != nil {
		return nil, fmt.Errorf("load etcd's client certificate: %w", err)
	}
	config := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	config.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if info.SupportsCertificate(&cert) != nil {
			return &tls.Certificate{}, nil
		}
		return &cert, nil
	}
	return config, nil
}
