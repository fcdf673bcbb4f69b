// Package controlplane runs a real Kubernetes control plane in the rig: etcd, one or
// more kube-apiservers, kube-controller-manager and kube-scheduler, each a process of
// the rig in a namespace on its network. It owns their flags, certificates, order and
// readiness, and what kubeadm would have put into the API for nodes to join. It must
// not know how nodes are made.
package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vk-metal/vk-metal/tests/cluster/pki"
	"github.com/vk-metal/vk-metal/tests/progress"
	"github.com/vk-metal/vk-metal/tests/rig"
)

// The cluster's address ranges. A node gets a /24 and a /64 of the pod ranges.
const (
	PodCIDRs     = "10.244.0.0/16,fd00:244::/56"
	ServiceCIDRs = "10.96.0.0/16,fd00:96::/108"
	ClusterDNS   = "10.96.0.10"
	Port         = 6443
)

// serviceAddresses are the first of each service range: the service "kubernetes".
var serviceAddresses = []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00:96::1")}

// stopGrace is how long a component may take to stop: a quiet apiserver takes 8 s, one with
// watchers that hold on would take a minute.
const stopGrace = 10 * time.Second

// Options are kept in the state directory, so that Open needs none.
type Options struct {
	// Programs is the directory of the components' programs (artifacts.Kubernetes).
	Programs string
	// APIServers is how many there are, in namespaces of their own; 0 is 1.
	APIServers int
	// SigningDuration is the lifetime of the certificates that nodes get; 0 is a year.
	SigningDuration time.Duration
	// FeatureGates are for all components, as in "A=true,B=false"; "" leaves the defaults.
	FeatureGates string `json:",omitempty"`
}

// ControlPlane is a handle; the state is in the rig's directory.
type ControlPlane struct {
	rig       *rig.Rig
	opts      Options
	dir       string
	pki       pki.Directory
	ca        *pki.Authority
	endpoints []rig.Endpoint // one per apiserver; the first also holds the rest
}

// Up starts what does not run yet, waits until all of it is ready, and puts the
// objects that joining nodes need into the API. It is idempotent.
func Up(ctx context.Context, r *rig.Rig, opts Options, printer *progress.Printer) (*ControlPlane, error) {
	opts.APIServers = max(opts.APIServers, 1)
	cp := &ControlPlane{rig: r, opts: opts, dir: filepath.Join(r.Dir(), "cluster")}
	cp.pki = pki.Directory(filepath.Join(cp.dir, "pki"))
	if before, err := Open(r); err == nil && before.opts.FeatureGates != opts.FeatureGates {
		return nil, fmt.Errorf("take over the control plane: it runs with the feature gates %q, not %q: remove it first", before.opts.FeatureGates, opts.FeatureGates)
	}
	for i := range opts.APIServers {
		endpoint, err := r.AddEndpoint(ctx, EndpointName(i), "")
		if err != nil {
			return nil, fmt.Errorf("make the control plane's namespace: %w", err)
		}
		cp.endpoints = append(cp.endpoints, endpoint)
	}
	if err := cp.prepare(); err != nil {
		return nil, err
	}
	if err := cp.start(ctx, printer); err != nil {
		return nil, err
	}
	step := printer.Step("prepare the API for nodes to join")
	return cp, step.Done(cp.bootstrap(ctx))
}

// Open finds the control plane that runs in the rig; rig.ErrNotFound when none does.
func Open(r *rig.Rig) (*ControlPlane, error) {
	cp := &ControlPlane{rig: r, dir: filepath.Join(r.Dir(), "cluster")}
	cp.pki = pki.Directory(filepath.Join(cp.dir, "pki"))
	data, err := os.ReadFile(filepath.Join(cp.dir, "options.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open the control plane: %w", rig.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open the control plane: %w", err)
	}
	if err := json.Unmarshal(data, &cp.opts); err != nil {
		return nil, fmt.Errorf("open the control plane: %w", err)
	}
	for i := range cp.opts.APIServers {
		endpoint, err := r.Endpoint(EndpointName(i))
		if err != nil {
			return nil, fmt.Errorf("open the control plane: %w", err)
		}
		cp.endpoints = append(cp.endpoints, endpoint)
	}
	cp.ca, err = cp.pki.Authority("ca")
	return cp, err
}

// prepare writes all files that the components read, and last the options.
func (cp *ControlPlane) prepare() error {
	if err := cp.makeCertificates(); err != nil {
		return fmt.Errorf("make certificates: %w", err)
	}
	if err := cp.writeKubeconfigs(); err != nil {
		return err
	}
	data, err := json.Marshal(cp.opts)
	if err != nil {
		return fmt.Errorf("keep the options: %w", err)
	}
	if err := os.WriteFile(filepath.Join(cp.dir, "options.json"), data, 0o600); err != nil {
		return fmt.Errorf("keep the options: %w", err)
	}
	return nil
}

// URLs are the API servers' addresses, first to last.
func (cp *ControlPlane) URLs() []string {
	var urls []string
	for _, endpoint := range cp.endpoints {
		urls = append(urls, url(endpoint.V4))
	}
	return urls
}

// CAHash is the hash that a joining node checks.
func (cp *ControlPlane) CAHash() string { return cp.ca.Hash() }

// CA is the cluster's certificate authority, PEM.
func (cp *ControlPlane) CA() []byte { return cp.ca.PEM() }

// Kubeconfig is the path of the administrator's kubeconfig.
func (cp *ControlPlane) Kubeconfig() string { return cp.kubeconfig("admin") }

// ProxyKubeconfig is the path of the kubeconfig that kube-proxy uses on nodes.
func (cp *ControlPlane) ProxyKubeconfig() (string, error) {
	file := cp.kubeconfig(proxyIdentity)
	if _, err := os.Stat(file); err != nil {
		return "", fmt.Errorf("find kube-proxy's kubeconfig: %w", err)
	}
	return file, nil
}

// Kubectl is the path of kubectl.
func (cp *ControlPlane) Kubectl() string { return filepath.Join(cp.opts.Programs, "kubectl") }

// RESTConfig is the administrator's, with client-side rate limits out of the way.
func (cp *ControlPlane) RESTConfig() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", cp.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("load the administrator's kubeconfig: %w", err)
	}
	config.QPS, config.Burst = -1, 0
	return config, nil
}

// Client is a client with the administrator's rights.
func (cp *ControlPlane) Client() (kubernetes.Interface, error) {
	config, err := cp.RESTConfig()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

// StopAPIServer stops the i-th API server and waits until it has gone.
func (cp *ControlPlane) StopAPIServer(ctx context.Context, i int) error {
	return cp.stopProcess(ctx, apiserverName(i))
}

// StartAPIServer starts the i-th API server again, unless it runs, and waits until it is
// ready. The controllers and the scheduler, which speak to the first one, are started anew
// with it: elsewhere they end when they lose their lease and are started by what watches
// over them, here they would ask again up to a minute later (client-go's back-off).
func (cp *ControlPlane) StartAPIServer(ctx context.Context, i int) error {
	runs, err := cp.running(apiserverName(i))
	if err != nil {
		return err
	}
	if err := cp.startComponent(ctx, cp.apiserver(i)); err != nil || runs || i > 0 {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, c := range []component{cp.controllerManager(), cp.scheduler()} {
		group.Go(func() error {
			if err := cp.stopProcess(ctx, c.name); err != nil {
				return err
			}
			return cp.startComponent(ctx, c)
		})
	}
	return group.Wait()
}

func (cp *ControlPlane) running(name string) (bool, error) {
	process, err := cp.rig.Process(name)
	if errors.Is(err, rig.ErrNotFound) {
		return false, nil
	}
	return err == nil && process.Running(), err
}

// Stop stops everything in order: clients before servers.
func (cp *ControlPlane) Stop(ctx context.Context) error {
	components := cp.components()
	for i := len(components) - 1; i >= 0; i-- {
		if err := cp.stopProcess(ctx, components[i].name); err != nil {
			return err
		}
	}
	return nil
}

func (cp *ControlPlane) stopProcess(ctx context.Context, name string) error {
	process, err := cp.rig.Process(name)
	if errors.Is(err, rig.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop %s: %w", name, err)
	}
	return process.Stop(ctx, stopGrace)
}

// EndpointName is the namespace of the i-th API server; the first holds the other parts too.
func EndpointName(i int) string { return "cp-" + strconv.Itoa(i) }

func apiserverName(i int) string {
	if i == 0 {
		return "kube-apiserver"
	}
	return "kube-apiserver-" + strconv.Itoa(i)
}

func url(addr netip.Addr) string {
	return "https://" + netip.AddrPortFrom(addr, Port).String()
}
