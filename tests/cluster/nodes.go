package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/vk-metal/vk-metal/tests/rig"
)

const (
	configFile   = "/etc/vk-metal/config.yaml"
	tokenTTL     = time.Hour
	readyTimeout = 2 * time.Minute
	// virtualReadyTimeout is for nodes whose processors are emulated.
	virtualReadyTimeout = 6 * time.Minute
)

// boot makes and boots a machine and installs the package there.
func (c *Cluster) boot(ctx context.Context, config rig.MachineConfig) error {
	step := c.progress.Step("boot %s and install vk-metal", config.Name)
	return step.Done(func() error {
		machine, err := c.Rig.AddMachine(ctx, config)
		if err != nil {
			return err
		}
		if err := machine.Start(ctx); err != nil {
			return err
		}
		if err := machine.WaitBooted(ctx); err != nil {
			return err
		}
		return c.install(ctx, machine)
	}())
}

// install installs the package, unless that very package is there.
func (c *Cluster) install(ctx context.Context, machine *rig.Machine) error {
	const mark = "/var/lib/vk-metal-rig-package"
	installed, err := machine.Run(ctx, "cat", mark)
	if err == nil && installed == c.parts.deb {
		return nil
	}
	if err := machine.InstallDeb(ctx, c.parts.deb); err != nil {
		return err
	}
	return machine.WriteFile(ctx, mark, []byte(c.parts.deb), 0o644)
}

// AddNode makes one more machine, lets it join and waits until it is Ready.
func (c *Cluster) AddNode(ctx context.Context, name, rack string) (*rig.Machine, error) {
	if c.parts.deb == "" {
		var err error
		if c.parts, err = build(ctx, &Options{Progress: c.progress}); err != nil {
			return nil, err
		}
	}
	if err := c.boot(ctx, rig.MachineConfig{Name: name, Rack: rack}); err != nil {
		return nil, err
	}
	token, err := c.ControlPlane.NewToken(ctx, tokenTTL)
	if err != nil {
		return nil, err
	}
	if err := c.join(ctx, name, token); err != nil {
		return nil, err
	}
	return c.Rig.Machine(name)
}

func (c *Cluster) joinAll(ctx context.Context, machines []rig.MachineConfig) error {
	if len(machines) == 0 {
		return nil
	}
	token, err := c.ControlPlane.NewToken(ctx, tokenTTL)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, machine := range machines {
		group.Go(func() error { return c.join(ctx, machine.Name, token) })
	}
	return group.Wait()
}

// join lets the machine join as its administrator would, unless it has, and waits
// until its Node is Ready.
func (c *Cluster) join(ctx context.Context, name, token string) error {
	step := c.progress.Step("join %s", name)
	return step.Done(func() error {
		machine, err := c.Rig.Machine(name)
		if err != nil {
			return err
		}
		if !has(ctx, machine, configFile) {
			if err := c.configureRegistries(ctx, machine); err != nil {
				return err
			}
			if _, err := machine.Run(ctx, c.JoinCommand(token)...); err != nil {
				return err
			}
		}
		if err := c.settle(ctx, machine); err != nil {
			return err
		}
		return c.WaitNodeReady(ctx, name)
	}())
}

// has says whether the machine has the file; it may be virtual, so that only it knows.
func has(ctx context.Context, machine *rig.Machine, file string) bool {
	_, err := machine.Run(ctx, "test", "-e", file)
	return err == nil
}

// JoinCommand is what an administrator types on a server that shall join.
func (c *Cluster) JoinCommand(token string) []string {
	command := append([]string{"vk-metal", "join"}, c.ControlPlane.URLs()...)
	return append(command, "--token", token, "--ca-hash", c.ControlPlane.CAHash())
}

func (c *Cluster) configureRegistries(ctx context.Context, machine *rig.Machine) error {
	hosts, err := os.MkdirTemp("", "vk-metal-hosts-")
	if err != nil {
		return fmt.Errorf("configure registries: %w", err)
	}
	defer func() { _ = os.RemoveAll(hosts) }()
	if err := c.Registry.WriteHosts(hosts); err != nil {
		return err
	}
	if err := os.Chmod(hosts, 0o755); err != nil {
		return fmt.Errorf("configure registries: %w", err)
	}
	return machine.CopyIn(ctx, hosts, "/etc/vk-metal/certs.d")
}

// WaitNodeReady blocks until the node is Ready and has its pod addresses.
func (c *Cluster) WaitNodeReady(ctx context.Context, name string) error {
	timeout := readyTimeout
	if machine, err := c.Rig.Machine(name); err == nil && machine.Virtual() {
		timeout = virtualReadyTimeout
	}
	var last string
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, timeout, true, func(ctx context.Context) (bool, error) {
		node, err := c.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			last = "it has not registered"
			return false, nil
		}
		if err != nil {
			last = err.Error()
			return false, nil // the API server may be what is being tested
		}
		var ready bool
		ready, last = nodeReady(node)
		return ready, nil
	})
	if err != nil {
		return fmt.Errorf("wait for node %s: %w: %s", name, err, last)
	}
	return nil
}

// nodeReady says whether pods can run on the node and, if not, why.
func nodeReady(node *corev1.Node) (ready bool, why string) {
	if len(node.Spec.PodCIDRs) == 0 {
		return false, "no podCIDRs"
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue, condition.Reason + ": " + condition.Message
		}
	}
	return false, "no Ready condition"
}

// Machines lists the machines.
func (c *Cluster) Machines() []*rig.Machine { return c.Rig.Machines() }

// Kubectl runs kubectl as the administrator and returns its stdout.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.ControlPlane.Kubectl(), append([]string{"--kubeconfig", c.ControlPlane.Kubeconfig()}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(out), fmt.Errorf("kubectl %s: %w: %s", args[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), err
}
