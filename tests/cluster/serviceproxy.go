package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/vk-metal/vk-metal/tests/artifacts"
	"github.com/vk-metal/vk-metal/tests/cluster/controlplane"
	"github.com/vk-metal/vk-metal/tests/rig"
)

// ServiceProxy says who makes Services work on the nodes.
type ServiceProxy string

// The service proxies.
const (
	// ServiceProxyVKMetal leaves Services to vk-metal.
	ServiceProxyVKMetal ServiceProxy = "vk-metal"
	// ServiceProxyKube runs upstream's kube-proxy, in nftables mode, beside vk-metal.
	ServiceProxyKube ServiceProxy = "kube-proxy"
	// ServiceProxyNewKube is kube-proxy of a later version than the cluster's, which is built
	// when somebody asks for it (artifacts.NewKubeProxyVersion; cold: 3 minutes on 2 quiet cores).
	ServiceProxyNewKube ServiceProxy = "kube-proxy-new"
)

// kube says whether it is a kube-proxy, and of which version.
func (p ServiceProxy) kube() (version string, ok bool) {
	switch p {
	case ServiceProxyKube:
		return artifacts.KubernetesVersion, true
	case ServiceProxyNewKube:
		return artifacts.NewKubeProxyVersion, true
	default:
		return "", false
	}
}

// ParseServiceProxy reads a name; "" is vk-metal.
func ParseServiceProxy(name string) (ServiceProxy, error) {
	switch proxy := ServiceProxy(name); proxy {
	case "":
		return ServiceProxyVKMetal, nil
	case ServiceProxyVKMetal, ServiceProxyKube, ServiceProxyNewKube:
		return proxy, nil
	default:
		return "", fmt.Errorf("there is no service proxy %q: %s, %s or %s", name, ServiceProxyVKMetal, ServiceProxyKube, ServiceProxyNewKube)
	}
}

const (
	proxyProgram    = "/usr/local/bin/kube-proxy"
	proxyKubeconfig = "/etc/kubernetes/kube-proxy.kubeconfig"
	proxyUnit       = "/etc/systemd/system/kube-proxy.service"
)

// proxyService leaves the conntrack sysctls alone: the machines share them with the host.
const proxyService = `[Unit]
Description=Kubernetes service proxy %s
After=network.target

[Service]
ExecStart=%s --kubeconfig=%s --hostname-override=%s --proxy-mode=nftables --cluster-cidr=%s --conntrack-max-per-core=0 --conntrack-min=0 --conntrack-tcp-timeout-established=0s --conntrack-tcp-timeout-close-wait=0s
Restart=always
RestartSec=1

[Install]
WantedBy=multi-user.target
`

// The lines of the configuration that depend on what else the cluster has.
const (
	externalLine = "serviceProxy: external\n"
	policyLine   = "networkPolicy: vk-metal\n"
	dnsLine      = "clusterDNS: [" + controlplane.ClusterDNS + "]\n"
	// evictionLine counts bytes: the machines share the host's disk, whose size says nothing of
	// what is left to them.
	evictionLine = "evictionHard: {memory.available: 100Mi, nodefs.available: 1Gi, imagefs.available: 1Gi}\nimageGCHighThresholdPercent: 100\n"
)

// SetServiceProxy has another service proxy work on one node.
func (c *Cluster) SetServiceProxy(ctx context.Context, node string, proxy ServiceProxy) error {
	machine, err := c.Rig.Machine(node)
	if err != nil {
		return err
	}
	return c.settleWith(ctx, machine, proxy)
}

func (c *Cluster) settle(ctx context.Context, machine *rig.Machine) error {
	return c.settleWith(ctx, machine, c.proxy)
}

// settleWith lets the machine know who makes Services work and where the cluster's DNS is, also
// where it was otherwise, turns network policies on, sets thresholds for a shared disk, and restarts what has to know.
func (c *Cluster) settleWith(ctx context.Context, machine *rig.Machine, proxy ServiceProxy) error {
	version, external := proxy.kube()
	config, err := machine.Run(ctx, "cat", configFile)
	if err != nil {
		return fmt.Errorf("read the configuration of %s: %w", machine.Name, err)
	}
	if !external {
		if err := stopKubeProxy(ctx, machine); err != nil {
			return err
		}
	}
	wanted := withLine(withLine(withLine(config, policyLine, true), externalLine, external), dnsLine, c.dns)
	wanted = withLine(wanted, evictionLine, true)
	if wanted != config {
		if err := machine.WriteFile(ctx, configFile, []byte(wanted), 0o644); err != nil {
			return err
		}
		if _, err := machine.Run(ctx, "systemctl", "restart", "vk-metal.service"); err != nil {
			return fmt.Errorf("restart vk-metal: %w", err)
		}
	}
	if external {
		return c.startKubeProxy(ctx, machine, version)
	}
	return nil
}

// withLine is the text with the line, or without it.
func withLine(text, line string, wanted bool) string {
	if strings.Contains(text, line) == wanted {
		return text
	}
	text = strings.TrimRight(strings.ReplaceAll(text, line, ""), "\n") + "\n"
	if wanted {
		text += line
	}
	return text
}

// stopKubeProxy removes kube-proxy and its rules from the machine.
func stopKubeProxy(ctx context.Context, machine *rig.Machine) error {
	if !has(ctx, machine, proxyUnit) {
		return nil
	}
	script := fmt.Sprintf("systemctl disable --now kube-proxy.service && %s --cleanup && rm %s", proxyProgram, proxyUnit)
	if _, err := machine.Run(ctx, "/bin/sh", "-c", script); err != nil {
		return fmt.Errorf("remove kube-proxy: %w", err)
	}
	return nil
}

// startKubeProxy has kube-proxy of a version on the machine, instead of another one.
func (c *Cluster) startKubeProxy(ctx context.Context, machine *rig.Machine, version string) error {
	unit := fmt.Sprintf(proxyService, version, proxyProgram, proxyKubeconfig, machine.Name, controlplane.PodCIDRs)
	if installed, err := machine.Run(ctx, "cat", proxyUnit); err == nil && strings.TrimSpace(installed) == strings.TrimSpace(unit) {
		return nil
	}
	if err := stopKubeProxy(ctx, machine); err != nil {
		return err
	}
	program, err := c.kubeProxy(ctx, version)
	if err != nil {
		return fmt.Errorf("install kube-proxy on %s: %w", machine.Name, err)
	}
	return c.installKubeProxy(ctx, machine, program, unit)
}

// kubeProxy is the program on this host, built unless the cache has it.
func (c *Cluster) kubeProxy(ctx context.Context, version string) (string, error) {
	store, err := artifacts.NewStore("", c.progress)
	if err != nil {
		return "", err
	}
	if version != artifacts.KubernetesVersion {
		return store.NewKubeProxy(ctx)
	}
	dir, err := store.Kubernetes(ctx)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(filepath.Join(dir, "kube-proxy"))
}

// installKubeProxy does what the administrator of a cluster without kubeadm would: program,
// kubeconfig and unit.
func (c *Cluster) installKubeProxy(ctx context.Context, machine *rig.Machine, program, unit string) error {
	kubeconfig, err := c.ControlPlane.ProxyKubeconfig()
	if err != nil {
		return err
	}
	if _, err := machine.Run(ctx, "apt-get", "install", "-y", "-q=2", "nftables", "conntrack"); err != nil {
		return fmt.Errorf("install what kube-proxy needs: %w", err)
	}
	if err := machine.CopyIn(ctx, program, proxyProgram); err != nil {
		return err
	}
	if err := machine.CopyIn(ctx, kubeconfig, proxyKubeconfig); err != nil {
		return err
	}
	if err := machine.WriteFile(ctx, proxyUnit, []byte(unit), 0o644); err != nil {
		return err
	}
	if _, err := machine.Run(ctx, "systemctl", "enable", "--now", "kube-proxy.service"); err != nil {
		return fmt.Errorf("start kube-proxy: %w", err)
	}
	return nil
}
