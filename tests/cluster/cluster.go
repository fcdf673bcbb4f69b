// Package cluster is the one way to a whole cluster for tests, demo and benchmarks:
// it puts the control plane, the registry and machines that have joined with
// vk-metal together. It must not know what is tested.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/vk-metal/vk-metal/tests/artifacts"
	"github.com/vk-metal/vk-metal/tests/cluster/controlplane"
	"github.com/vk-metal/vk-metal/tests/progress"
	"github.com/vk-metal/vk-metal/tests/registry"
	"github.com/vk-metal/vk-metal/tests/rig"
)

// Options say what cluster to make.
type Options struct {
	// Dir is the rig's state directory, absolute, on a real file system.
	Dir string
	// Nodes are made with the names metal-0, metal-1, …
	Nodes int
	// VirtualNodes are virtual machines with cgroup v2 and Debian 13 (slow: see
	// rig.MachineConfig), with the names virtual-0, virtual-1, …
	VirtualNodes int
	// Racks are the networks that nodes are spread over in turn; none means one.
	Racks []rig.RackConfig
	// ServiceProxy says who makes Services work; "" is vk-metal.
	ServiceProxy ServiceProxy
	// ClusterDNS runs CoreDNS in the cluster, and has the registry serve all images that
	// upstream's suite names.
	ClusterDNS bool
	// Controller has the registry serve the image of vk-metal's controller.
	Controller bool
	// BuildTag builds vk-metal with a tag, for tests that need a special build.
	BuildTag string
	// ControlPlane's Programs are filled in.
	ControlPlane controlplane.Options
	// Progress gets lines with elapsed times; nil is silence.
	Progress *progress.Printer
}

// Cluster is a handle; handles in several processes may be used at once.
type Cluster struct {
	Rig          *rig.Rig
	ControlPlane *controlplane.ControlPlane
	Registry     *registry.Registry
	Config       *rest.Config
	Client       kubernetes.Interface

	progress *progress.Printer
	parts    parts
	proxy    ServiceProxy
	dns      bool
}

// parts are the artifacts that a cluster is made of: paths in the cache.
type parts struct {
	kubernetes, metalrig, deb string
	images                    []string
}

// NodeName is the name of the i-th node.
func NodeName(i int) string { return "metal-" + strconv.Itoa(i) }

// VirtualNodeName is the name of the i-th virtual node.
func VirtualNodeName(i int) string { return "virtual-" + strconv.Itoa(i) }

// machines are the machines of all nodes.
func (o Options) machines() []rig.MachineConfig {
	configs := make([]rig.MachineConfig, 0, o.Nodes+o.VirtualNodes)
	for i := range o.Nodes {
		configs = append(configs, rig.MachineConfig{Name: NodeName(i), Rack: rackOf(o.Racks, i)})
	}
	for i := range o.VirtualNodes {
		configs = append(configs, rig.MachineConfig{Name: VirtualNodeName(i), Rack: rackOf(o.Racks, o.Nodes+i), VM: true})
	}
	return configs
}

// Up makes the cluster, or completes or reopens the one that is there, and returns
// once every node is Ready.
func Up(ctx context.Context, opts Options) (*Cluster, error) {
	c := &Cluster{progress: opts.Progress, proxy: opts.ServiceProxy, dns: opts.ClusterDNS}
	var err error
	if c.parts, err = build(ctx, &opts); err != nil {
		return nil, err
	}
	c.Rig, err = rig.Up(ctx, rig.Config{Dir: opts.Dir, Racks: opts.Racks, Progress: opts.Progress})
	if err != nil {
		return nil, err
	}
	opts.ControlPlane.Programs = c.parts.kubernetes
	group, started := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		c.ControlPlane, err = controlplane.Up(started, c.Rig, opts.ControlPlane, opts.Progress)
		return err
	})
	group.Go(func() (err error) {
		step := opts.Progress.Step("start the registry")
		c.Registry, err = registry.Up(started, c.Rig, c.parts.metalrig, c.parts.images...)
		return step.Done(err)
	})
	for _, machine := range opts.machines() {
		group.Go(func() error { return c.boot(started, machine) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if err := c.connect(); err != nil {
		return nil, err
	}
	if err := c.startController(ctx); err != nil {
		return nil, err
	}
	if err := c.joinAll(ctx, opts.machines()); err != nil {
		return nil, err
	}
	if opts.ClusterDNS {
		return c, c.startDNS(ctx)
	}
	return c, nil
}

// Open finds the cluster of a state directory; rig.ErrNotFound when there is none.
func Open(dir string, printer *progress.Printer) (*Cluster, error) {
	c := &Cluster{progress: printer}
	var err error
	if c.Rig, err = rig.Open(dir); err != nil {
		return nil, err
	}
	if c.ControlPlane, err = controlplane.Open(c.Rig); err != nil {
		return nil, err
	}
	if c.Registry, err = registry.Open(c.Rig); err != nil {
		return nil, err
	}
	return c, c.connect()
}

func (c *Cluster) connect() error {
	var err error
	if c.Config, err = c.ControlPlane.RESTConfig(); err != nil {
		return err
	}
	c.Client, err = kubernetes.NewForConfig(c.Config)
	return err
}

// build makes everything that takes processor time before anything runs.
func build(ctx context.Context, opts *Options) (p parts, err error) {
	store, err := artifacts.NewStore("", opts.Progress)
	if err != nil {
		return p, err
	}
	if p.kubernetes, err = store.Kubernetes(ctx); err != nil {
		return p, err
	}
	if p.metalrig, err = store.Metalrig(ctx); err != nil {
		return p, err
	}
	makers := []func(context.Context, *artifacts.Store) (string, error){registry.Images}
	if opts.ClusterDNS {
		makers = append(makers, registry.UpstreamImages)
	}
	for _, images := range makers {
		layout, err := images(ctx, store)
		if err != nil {
			return p, err
		}
		p.images = append(p.images, layout)
	}
	if p.deb, err = store.TaggedPackage(ctx, opts.BuildTag); err != nil || !opts.Controller {
		return p, err
	}
	controller, err := registry.ControllerImage(ctx, store, p.deb)
	p.images = append(p.images, controller)
	return p, err
}

// Package is the path of the vk-metal package that the nodes have, a name of its content.
func (c *Cluster) Package() string { return c.parts.deb }

// startController runs the rig's own controller (see controlplane.ApproveServing)
// beside the control plane for as long as the cluster stands.
func (c *Cluster) startController(ctx context.Context) error {
	const name = "rig-controller"
	process, err := c.Rig.Process(name)
	if err == nil && process.Running() {
		return nil
	}
	if err != nil && !errors.Is(err, rig.ErrNotFound) {
		return err
	}
	_, err = c.Rig.StartProcess(ctx, rig.ProcessSpec{
		Name: name, Path: c.parts.metalrig, Endpoint: controlplane.EndpointName(0),
		Argv: []string{"metalrig", "controller", "--kubeconfig=" + c.ControlPlane.Kubeconfig()},
	})
	return err
}

func rackOf(racks []rig.RackConfig, i int) string {
	if len(racks) == 0 {
		return ""
	}
	return racks[i%len(racks)].Name
}

// Down removes the cluster of a state directory and everything that it made on the
// host. What is not there is no error.
func Down(ctx context.Context, dir string) error {
	if _, err := rig.Open(dir); errors.Is(err, rig.ErrNotFound) {
		return nil // also of a directory that is something else
	}
	if err := rig.Down(ctx, dir); err != nil {
		return err
	}
	// The next cluster has other machines and addresses: certificates and etcd's data of
	// this one would be wrong there.
	for _, name := range []string{"cluster", "registry"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("remove cluster: %w", err)
		}
	}
	return nil
}

// CollectLogs writes what explains a failure into dir; it collects what it can.
func (c *Cluster) CollectLogs(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("collect logs: %w", err)
	}
	errs := []error{c.Rig.CollectLogs(ctx, dir)}
	for file, args := range map[string][]string{
		"nodes.txt":    {"describe", "nodes"},
		"pods.txt":     {"describe", "pods", "--all-namespaces"},
		"pods.yaml":    {"get", "pods", "--all-namespaces", "-o", "yaml"},
		"overview.txt": {"get", "nodes,pods,deployments,replicasets", "--all-namespaces", "-o", "wide"},
		"events.txt":   {"get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"},
		"requests.txt": {"get", "certificatesigningrequests"},
	} {
		out, err := c.Kubectl(ctx, append(args, "--request-timeout=10s")...)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, os.WriteFile(filepath.Join(dir, file), []byte(out), 0o644))
	}
	return errors.Join(errs...)
}
