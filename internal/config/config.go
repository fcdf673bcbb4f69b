// Package config reads the agent's one configuration file: strict, versioned YAML.
// It owns names, defaults and checks of settings; it opens that one file and nothing
// else, and must not know what the settings do.
package config

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/vk-metal/vk-metal/internal/pressure"
)

// APIVersion and Kind open every configuration file.
const (
	APIVersion = "vk-metal.io/v1alpha1"
	Kind       = "NodeConfig"
)

// DefaultPath is where the agent looks for its configuration.
const DefaultPath = "/etc/vk-metal/config.yaml"

// Config is a checked configuration with all defaults filled in.
type Config struct {
	// NodeName is the Node object's name; empty takes the host name (see ResolveNodeName).
	NodeName string
	// APIServers are https://host:port URLs, tried in order; the agent stays with one
	// until it cannot be reached. Empty takes the server of Kubeconfig.
	APIServers []string
	// ClusterCA signs the API servers' certificates and the clients of the node's own API.
	ClusterCA string
	// Kubeconfig has credentials made by somebody else; empty uses the certificate store.
	Kubeconfig string
	// BootstrapKubeconfig has the bootstrap token with which the first certificate is asked for.
	BootstrapKubeconfig string

	ClusterDNS    []netip.Addr
	ClusterDomain string
	// DNSCache answers pods' queries to ClusterDNS on the node.
	DNSCache bool
	// NodeIPs are the node's addresses, the first is the primary; empty finds them.
	NodeIPs            []netip.Addr
	NodeLabels         map[string]string
	RegisterWithTaints []corev1.Taint
	// ProviderID names this server to a cluster's machine controllers; set at registration only.
	ProviderID     string
	MaxPods        int
	KubeReserved   corev1.ResourceList
	SystemReserved corev1.ResourceList
	ResolvConf     string
	// StaticPodPath is a directory of manifests of pods that this node runs by itself; empty
	// means none.
	StaticPodPath string
	// KubeAPIQPS is how many requests a second the API server is sent at most, after bursts of
	// KubeAPIBurst; events count apart.
	KubeAPIQPS, KubeAPIBurst int
	// PodPidsLimit bounds the processes and threads of each pod; -1 is none.
	PodPidsLimit int
	// SeccompDefault gives the runtime's default seccomp profile to containers that name none.
	SeccompDefault bool
	// AllowedUnsafeSysctls are sysctls, or groups of them ending in *, that pods may set
	// besides Kubernetes' safe ones.
	AllowedUnsafeSysctls []string
	// ImagePullVerification says for which present images pods have to prove that they may pull them.
	ImagePullVerification ImagePullVerification

	Registries Registries
	HostImages HostImages
	Network    Network
	// ServiceProxy is who makes Services work on this node: vk-metal, or external for a
	// kube-proxy or a network plugin that does.
	ServiceProxy string
	// NetworkPolicy is who enforces network policies on this node: vk-metal, or external for
	// a network plugin that does, or nobody.
	NetworkPolicy string
	Logs          Logs
	ImageGC       ImageGC
	Eviction      Eviction
	Shutdown      Shutdown
	StopHold      StopHold
	Listen        Listen
	LogLevel      slog.Level
	// SystemLogQuery lets clients of the node's API read the journal.
	SystemLogQuery bool
}

// Registries says where image registries are configured.
type Registries struct {
	// ConfigPath is a directory in containerd's certs.d layout (<host>/hosts.toml).
	ConfigPath string
	// CredentialProviderConfig is a kubelet's configuration of credential provider plugins, whose
	// programs are in CredentialProviderBinDir; empty for none.
	CredentialProviderConfig, CredentialProviderBinDir string
}

// ImagePullVerification is a kubelet's imagePullCredentialsVerificationPolicy and
// preloadedImagesVerificationAllowlist.
type ImagePullVerification struct {
	Policy    string
	Allowlist []string
}

// HostImages are images that are programs of the host (docs/host-images.md).
type HostImages struct {
	Enabled bool
	// Roots are directories and disk images of the host that run as vk-metal.local/<name>.
	Roots []HostRoot
}

// HostRoot is a directory or a disk image, with what verity it must have: "", hashed or signed.
type HostRoot struct{ Name, Path, Verity string }

// Network is the pod network's host side.
type Network struct {
	// Plugin is who gives pods their network: vk-metal, or cni for the plugins that the
	// lists in CNIConfDir name, programs in CNIBinDirs. All the rest is then theirs.
	Plugin     string
	CNIConfDir string
	CNIBinDirs []string
	// MTU of pod interfaces in bytes; 0 takes the uplink's.
	MTU int
	// Masquerade pods' traffic to the world behind the node's address.
	Masquerade bool
	// ClusterCIDRs hold all pods and are never masqueraded; empty uses the Nodes' podCIDRs.
	ClusterCIDRs []netip.Prefix
	// PodCIDRs replaces the podCIDRs of the Node object.
	PodCIDRs []netip.Prefix
	// Encapsulation of traffic to other nodes' pods by VXLAN: Never, CrossSubnet (nodes
	// behind a router only) or Always. The same on all nodes.
	Encapsulation string
	// VXLANPort is the UDP port that all nodes use for it.
	VXLANPort int
	// Routing is who makes the routes to other nodes' pods: HostGW, BGP or Both.
	Routing string
	// BGPConfig is a BGP configuration file; BGPConfigMap, namespace/name, holds one for
	// all nodes. The file goes before it. Both are followed while the agent runs.
	BGPConfig, BGPConfigMap string
	// Encryption of traffic to other nodes' pods by WireGuard: None, Preferred (where both
	// nodes can) or Required (or else not at all).
	Encryption string
	// WireGuardPort is the first of two UDP ports. WireGuardRotation is how long a key is in
	// use, 0 is forever; the same on all nodes. WireGuardKeepalive 0 is none.
	WireGuardPort                         int
	WireGuardRotation, WireGuardKeepalive time.Duration
	// AnnounceLAN announces LoadBalancer addresses by ARP and NDP: on LANInterfaces, or on
	// every link with the address' subnet.
	AnnounceLAN   bool
	LANInterfaces []string
}

// BGPEnabled says whether the agent speaks BGP.
func (n *Network) BGPEnabled() bool { return n.BGPConfig != "" || n.BGPConfigMap != "" }

// Logs bounds the container logs kept per container.
type Logs struct {
	// MaxSize of one file in bytes, after which it is rotated.
	MaxSize int64
	// MaxFiles per container, the current one included.
	MaxFiles int
}

// ImageGC says when images that nothing uses are removed; the defaults are a kubelet's.
type ImageGC struct {
	// HighThresholdPercent of the image file system in use starts it, LowThresholdPercent ends
	// it. 100 turns it off.
	HighThresholdPercent, LowThresholdPercent int
	// MinimumAge keeps images that were used less long ago.
	MinimumAge time.Duration
}

// Eviction says when pods have to go for want of memory, disk or processes; the defaults are
// a kubelet's.
type Eviction struct {
	// Hard and Soft are how little may be left; Soft goes with SoftGrace.
	Hard, Soft map[pressure.Signal]pressure.Amount
	SoftGrace  map[pressure.Signal]time.Duration
	// MinimumReclaim is how much more has to be left until a shortage is over.
	MinimumReclaim map[pressure.Signal]pressure.Amount
	// TransitionPeriod is how long the node's condition stays after a shortage.
	TransitionPeriod time.Duration
	// MaxPodGracePeriod bounds the grace period of pods that go for a soft threshold; seconds.
	MaxPodGracePeriod int
	// MergeDefaults keeps the default hard thresholds that Hard does not name.
	MergeDefaults bool
}

// Settings are those of the loop.
func (e Eviction) Settings() pressure.Settings {
	hard := e.Hard
	switch {
	case hard == nil:
		hard = pressure.DefaultHard()
	case e.MergeDefaults:
		hard = pressure.DefaultHard()
		maps.Copy(hard, e.Hard)
	}
	return pressure.Settings{
		Thresholds:       pressure.Thresholds(hard, e.Soft, e.MinimumReclaim, e.SoftGrace),
		TransitionPeriod: e.TransitionPeriod, MaxPodGrace: time.Duration(e.MaxPodGracePeriod) * time.Second,
	}
}

// Shutdown says how long the server's shutdown waits for pods.
type Shutdown struct {
	// GracePeriod in all; 0 leaves pods to systemd. CriticalPods is the part of it that is kept
	// for critical pods, which end last.
	GracePeriod, CriticalPods time.Duration
}

// StopHold says how long the stop of a deleted pod waits for its clients to be sent elsewhere.
type StopHold struct {
	Enabled bool
	// SettleTime is what other nodes are given after the last EndpointSlice has changed.
	SettleTime time.Duration
	// MaxGracePercent of a pod's grace period is what the wait may take.
	MaxGracePercent int
}

// Listen is the address of the node's API.
type Listen struct {
	// Address is unspecified (::) to listen on all.
	Address netip.Addr
	Port    int
}

// Default is the configuration of an empty file.
func Default() Config {
	return Config{
		ClusterCA:           "/etc/vk-metal/ca.crt",
		BootstrapKubeconfig: "/etc/vk-metal/bootstrap-kubeconfig",
		ClusterDomain:       "cluster.local",
		MaxPods:             110,
		KubeAPIQPS:          250,
		KubeAPIBurst:        500,
		PodPidsLimit:        -1,
		ResolvConf:          "",
		Registries:          Registries{ConfigPath: "/etc/vk-metal/certs.d"},
		Network:             Network{Plugin: "vk-metal", CNIConfDir: "/etc/cni/net.d", Masquerade: true, Encapsulation: "Never", VXLANPort: 4789, Routing: "HostGW", Encryption: "None", WireGuardPort: 51820, WireGuardRotation: 24 * time.Hour},
		ServiceProxy:        "vk-metal",
		NetworkPolicy:       "external",
		Logs:                Logs{MaxSize: 32 << 20, MaxFiles: 5},
		ImageGC:             ImageGC{HighThresholdPercent: 85, LowThresholdPercent: 80, MinimumAge: 2 * time.Minute},
		Eviction:            Eviction{TransitionPeriod: 5 * time.Minute},
		StopHold:            StopHold{Enabled: true, SettleTime: 2 * time.Second, MaxGracePercent: 50},
		Listen:              Listen{Address: netip.IPv6Unspecified(), Port: 10250},
		KubeReserved:        corev1.ResourceList{},
		SystemReserved:      corev1.ResourceList{},
	}
}

// Load reads and checks a configuration file. The error of a bad file is an Errors.
func Load(path string) (Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, data)
}

// Parse checks data as the configuration file called name. All mistakes are reported at
// once, as Errors.
func Parse(name string, data []byte) (Config, error) {
	config := Default()
	d := &decoder{file: name}
	if root := d.document(data); root != nil {
		d.mapping("", root, config.fields(d)...)
		d.crossCheck(&config, root)
	}
	if len(d.errs) > 0 {
		return Config{}, d.errs.sorted()
	}
	return config, nil
}

// Reserved is what KubeReserved and SystemReserved keep back together.
func (c *Config) Reserved() corev1.ResourceList {
	sum := corev1.ResourceList{}
	for _, list := range []corev1.ResourceList{c.KubeReserved, c.SystemReserved} {
		for name, quantity := range list {
			total := sum[name]
			total.Add(quantity)
			sum[name] = total
		}
	}
	return sum
}

// reservable are the resources that can be kept back from pods.
var reservable = []corev1.ResourceName{
	corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage, "pid",
}

var maxLogFile = resource.MustParse("16Gi")
