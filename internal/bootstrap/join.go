package bootstrap

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/vk-metal/vk-metal/internal/config"
)

// JoinOptions are what `vk-metal join` was told.
type JoinOptions struct {
	ConfigPath string
	Servers    []string
	Token      Token
	Pins       []Pin
	// NodeName empty leaves it to the configuration, or the host name.
	NodeName string
	// PKI is the certificate store.
	PKI string
	// Force lets join replace settings that differ.
	Force bool
	// Wait is how long to wait for the certificate's approval.
	Wait time.Duration
	Log  *slog.Logger
}

// ErrNotApproved says that everything is written but the cluster has not signed the client
// certificate in time; the agent goes on waiting for it.
var ErrNotApproved = errors.New("the cluster has not yet approved this node's certificate: kubectl get csr, kubectl certificate approve")

// Join discovers the cluster, writes configuration and CA, and gets the node's first
// client certificate. It may be repeated.
func Join(ctx context.Context, o JoinOptions) (config.Config, error) {
	ca, err := Discover(ctx, o.Servers, o.Token, o.Pins)
	if err != nil {
		return config.Config{}, err
	}
	cfg, err := writeSettings(o, ca)
	if err != nil {
		return config.Config{}, err
	}
	return cfg, firstCertificate(ctx, o, cfg)
}

// writeSettings writes configuration, CA and bootstrap kubeconfig, checking all before
// writing any.
func writeSettings(o JoinOptions, ca []byte) (config.Config, error) {
	old, err := os.ReadFile(o.ConfigPath)
	if err != nil && !os.IsNotExist(err) {
		return config.Config{}, fmt.Errorf("read configuration: %w", err)
	}
	edited, err := config.Edit(o.ConfigPath, old, config.Joined{APIServers: o.Servers, NodeName: o.NodeName}, o.Force)
	if err != nil {
		return config.Config{}, err
	}
	cfg, err := config.Parse(o.ConfigPath, edited)
	if err != nil {
		return config.Config{}, err
	}
	if cfg.Kubeconfig != "" {
		return cfg, fmt.Errorf("%s: kubeconfig is set to %s, which needs no join: remove it first", o.ConfigPath, cfg.Kubeconfig)
	}
	oldCA, err := os.ReadFile(cfg.ClusterCA)
	if err == nil && !bytes.Equal(oldCA, ca) && !o.Force {
		return cfg, fmt.Errorf("%s is another cluster's CA: give --force to replace it", cfg.ClusterCA)
	}
	kubeconfig, err := renderBootstrap(o.Servers[0], ca, o.Token)
	if err != nil {
		return cfg, err
	}
	for _, f := range []struct {
		path string
		data []byte
		mode os.FileMode
	}{{cfg.ClusterCA, ca, 0o644}, {cfg.BootstrapKubeconfig, kubeconfig, 0o600}, {o.ConfigPath, edited, 0o644}} {
		if err := writeFile(f.path, f.data, f.mode); err != nil {
			return cfg, err
		}
	}
	return cfg, nil
}

// firstCertificate gets the client certificate and then removes the token from disk.
func firstCertificate(ctx context.Context, o JoinOptions, cfg config.Config) error {
	name, err := cfg.ResolveNodeName()
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	ca, err := os.ReadFile(cfg.ClusterCA)
	if err != nil {
		return fmt.Errorf("read cluster CA: %w", err)
	}
	pool.AppendCertsFromPEM(ca)
	if err := dropForeign(o.PKI, name, pool); err != nil {
		return err
	}
	id, err := NewIdentity(IdentityOptions{
		NodeName: name, Servers: o.Servers, CA: pool, Dir: o.PKI,
		BootstrapKubeconfig: cfg.BootstrapKubeconfig, Log: o.Log,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Wait)
	defer cancel()
	go func() { _ = id.Run(ctx) }()
	select {
	case <-id.Got():
	case <-ctx.Done():
		return ErrNotApproved
	}
	if err := os.Remove(cfg.BootstrapKubeconfig); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("remove used bootstrap token: %w", err)
	}
	return nil
}

// dropForeign forgets a stored client certificate of another node or cluster, so that a
// new one is asked for.
func dropForeign(dir, nodeName string, ca *x509.CertPool) error {
	s, err := newStore(dir, clientPair)
	if err != nil {
		return err
	}
	cert := s.valid()
	if cert == nil {
		return nil
	}
	_, err = cert.Leaf.Verify(x509.VerifyOptions{Roots: ca, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err == nil && cert.Leaf.Subject.CommonName == "system:node:"+nodeName {
		return nil
	}
	return errors.Join(forget(dir, clientPair), forget(dir, servingPair))
}

// writeFile replaces a file in one step.
func writeFile(path string, data []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
