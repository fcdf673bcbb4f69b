package config

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/distribution/reference"
	"gopkg.in/yaml.v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/vk-metal/vk-metal/internal/pressure"
)

// fields is the schema of the file: every key, where it goes and how it is checked.
func (c *Config) fields(d *decoder) []field {
	var apiVersion, kind string
	return []field{
		parsed(d, "apiVersion", &apiVersion, parseExactly(APIVersion)),
		parsed(d, "kind", &kind, parseExactly(Kind)),
		parsed(d, "nodeName", &c.NodeName, parseNodeName),
		listOf(d, "apiServers", &c.APIServers, ParseAPIServer),
		parsed(d, "clusterCA", &c.ClusterCA, parsePath),
		parsed(d, "kubeconfig", &c.Kubeconfig, parsePath),
		parsed(d, "bootstrapKubeconfig", &c.BootstrapKubeconfig, parsePath),
		listOf(d, "clusterDNS", &c.ClusterDNS, parseAddr),
		parsed(d, "clusterDomain", &c.ClusterDomain, parseDomain),
		parsed(d, "dnsCache", &c.DNSCache, parseBool),
		listOf(d, "nodeIPs", &c.NodeIPs, parseNodeIP),
		{"nodeLabels", func(key string, node *yaml.Node) { c.NodeLabels = d.labels(key, node) }},
		{"registerWithTaints", func(key string, node *yaml.Node) { c.RegisterWithTaints = d.taints(key, node) }},
		parsed(d, "providerID", &c.ProviderID, parseProviderID),
		parsed(d, "maxPods", &c.MaxPods, parseInt(1, 10000)),
		{"kubeReserved", func(key string, node *yaml.Node) { c.KubeReserved = d.resources(key, node) }},
		{"systemReserved", func(key string, node *yaml.Node) { c.SystemReserved = d.resources(key, node) }},
		parsed(d, "resolvConf", &c.ResolvConf, parsePath),
		parsed(d, "staticPodPath", &c.StaticPodPath, parsePath),
		parsed(d, "kubeAPIQPS", &c.KubeAPIQPS, parseInt(1, 100000)),
		parsed(d, "kubeAPIBurst", &c.KubeAPIBurst, parseInt(1, 100000)),
		parsed(d, "podPidsLimit", &c.PodPidsLimit, parsePidsLimit),
		parsed(d, "seccompDefault", &c.SeccompDefault, parseBool),
		listOf(d, "allowedUnsafeSysctls", &c.AllowedUnsafeSysctls, parseSysctl),
		parsed(d, "imagePullCredentialsVerificationPolicy", &c.ImagePullVerification.Policy,
			parseOneOf("NeverVerify", "NeverVerifyPreloadedImages", "NeverVerifyAllowlistedImages", "AlwaysVerify")),
		listOf(d, "preloadedImagesVerificationAllowlist", &c.ImagePullVerification.Allowlist, parseRepositories),
		d.section("registries",
			parsed(d, "configPath", &c.Registries.ConfigPath, parsePath),
			parsed(d, "credentialProviderConfig", &c.Registries.CredentialProviderConfig, parsePath),
			parsed(d, "credentialProviderBinDir", &c.Registries.CredentialProviderBinDir, parsePath)),
		d.section("hostImages",
			parsed(d, "enabled", &c.HostImages.Enabled, parseBool),
			field{"roots", func(key string, node *yaml.Node) { c.HostImages.Roots = d.hostRoots(key, node) }}),
		d.section("network",
			parsed(d, "mtu", &c.Network.MTU, parseInt(0, 65535)),
			parsed(d, "masquerade", &c.Network.Masquerade, parseBool),
			listOf(d, "clusterCIDRs", &c.Network.ClusterCIDRs, parsePrefix),
			listOf(d, "podCIDRs", &c.Network.PodCIDRs, parsePrefix),
			parsed(d, "encapsulation", &c.Network.Encapsulation, parseOneOf("Never", "CrossSubnet", "Always")),
			parsed(d, "vxlanPort", &c.Network.VXLANPort, parseInt(1, 65535)),
			parsed(d, "encryption", &c.Network.Encryption, parseOneOf("None", "Preferred", "Required")),
			parsed(d, "wireguardPort", &c.Network.WireGuardPort, parseInt(1, 65534)),
			parsed(d, "wireguardRotation", &c.Network.WireGuardRotation, parseRotation),
			parsed(d, "wireguardKeepalive", &c.Network.WireGuardKeepalive, parseKeepalive),
			parsed(d, "routing", &c.Network.Routing, parseOneOf("HostGW", "BGP", "Both")),
			parsed(d, "bgpConfig", &c.Network.BGPConfig, parsePath),
			parsed(d, "bgpConfigMap", &c.Network.BGPConfigMap, parseConfigMap),
			parsed(d, "announceLAN", &c.Network.AnnounceLAN, parseBool),
			listOf(d, "lanInterfaces", &c.Network.LANInterfaces, parseInterface),
			parsed(d, "plugin", &c.Network.Plugin, parseOneOf("vk-metal", "cni")),
			parsed(d, "cniConfDir", &c.Network.CNIConfDir, parsePath),
			listOf(d, "cniBinDirs", &c.Network.CNIBinDirs, parsePath)),
		parsed(d, "serviceProxy", &c.ServiceProxy, parseOneOf("vk-metal", "external")),
		parsed(d, "networkPolicy", &c.NetworkPolicy, parseOneOf("vk-metal", "external")),
		d.section("logs",
			parsed(d, "maxSize", &c.Logs.MaxSize, parseLogSize),
			parsed(d, "maxFiles", &c.Logs.MaxFiles, parseInt(2, 1000))),
		parsed(d, "shutdownGracePeriod", &c.Shutdown.GracePeriod, parseDuration),
		parsed(d, "shutdownGracePeriodCriticalPods", &c.Shutdown.CriticalPods, parseDuration),
		d.section("stopHold",
			parsed(d, "enabled", &c.StopHold.Enabled, parseBool),
			parsed(d, "settleTime", &c.StopHold.SettleTime, parseDuration),
			parsed(d, "maxGracePercent", &c.StopHold.MaxGracePercent, parseInt(1, 90))),
		d.section("listen",
			parsed(d, "address", &c.Listen.Address, parseAddr),
			parsed(d, "port", &c.Listen.Port, parseInt(1, 65535))),
		parsed(d, "imageGCHighThresholdPercent", &c.ImageGC.HighThresholdPercent, parseInt(0, 100)),
		parsed(d, "imageGCLowThresholdPercent", &c.ImageGC.LowThresholdPercent, parseInt(0, 100)),
		parsed(d, "imageMinimumGCAge", &c.ImageGC.MinimumAge, parseDuration),
		perSignal(d, "evictionHard", &c.Eviction.Hard, pressure.ParseAmount),
		perSignal(d, "evictionSoft", &c.Eviction.Soft, pressure.ParseAmount),
		perSignal(d, "evictionSoftGracePeriod", &c.Eviction.SoftGrace, parseSoftGrace),
		perSignal(d, "evictionMinimumReclaim", &c.Eviction.MinimumReclaim, pressure.ParseAmount),
		parsed(d, "evictionPressureTransitionPeriod", &c.Eviction.TransitionPeriod, parseDuration),
		parsed(d, "evictionMaxPodGracePeriod", &c.Eviction.MaxPodGracePeriod, parseInt(0, 1<<31-1)),
		parsed(d, "mergeDefaultEvictionSettings", &c.Eviction.MergeDefaults, parseBool),
		parsed(d, "enableSystemLogQuery", &c.SystemLogQuery, parseBool),
		parsed(d, "logLevel", &c.LogLevel, parseLevel),
	}
}

// parseProviderID takes what machine controllers compare: anything without spaces.
func parseProviderID(text string) (string, error) {
	if text == "" || len(text) > 1024 || strings.ContainsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return "", fmt.Errorf("%q must be one word, such as metal3://0f5dd28c-1f6b-4b51-a2ef-2bd7dd1a4e1c", text)
	}
	return text, nil
}

// parseInterface takes what the kernel takes (dev_valid_name).
func parseInterface(text string) (string, error) {
	if text == "" || text == "." || text == ".." || len(text) > 15 || strings.ContainsAny(text, "/: \t\n") {
		return "", fmt.Errorf("%q cannot be the name of a network interface", text)
	}
	return text, nil
}

// parseRepositories takes a repository, without tag and digest, or all below one.
func parseRepositories(text string) (string, error) {
	name := text
	if prefix, all := strings.CutSuffix(text, "/*"); all {
		name = prefix + "/all"
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil || !reference.IsNameOnly(named) {
		return "", fmt.Errorf("%q must be a repository without tag and digest, such as registry.example/team/app, or registry.example/team/* for all below it", text)
	}
	return text, nil
}

func parseConfigMap(text string) (string, error) {
	namespace, name, both := strings.Cut(text, "/")
	if !both || len(validation.IsDNS1123Label(namespace)) > 0 || len(validation.IsDNS1123Subdomain(name)) > 0 {
		return "", fmt.Errorf("%q must be namespace/name", text)
	}
	return text, nil
}

func parseDuration(text string) (time.Duration, error) {
	length, err := time.ParseDuration(text)
	if err != nil || length < 0 {
		return 0, fmt.Errorf("%q is not a length of time such as 2m or 36h", text)
	}
	return length, nil
}

func parseExactly(want string) func(string) (string, error) {
	return func(text string) (string, error) {
		if text != want {
			return "", fmt.Errorf("%q is not supported by this version: write %s", text, want)
		}
		return text, nil
	}
}

func parseOneOf(allowed ...string) func(string) (string, error) {
	return func(text string) (string, error) {
		if !slices.Contains(allowed, text) {
			return "", fmt.Errorf("%q must be one of %s", text, strings.Join(allowed, ", "))
		}
		return text, nil
	}
}

func parseNodeName(text string) (string, error) {
	if problems := validation.IsDNS1123Subdomain(text); len(problems) > 0 {
		return "", fmt.Errorf("%q cannot name a Node: use lower-case letters, digits, '-' and '.', 253 at most", text)
	}
	return text, nil
}

// ParseAPIServer checks the URL of an API server and returns it as https://host:port.
func ParseAPIServer(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil ||
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("%q is not an API server: write it as https://host:6443", text)
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	if _, err := parseInt(1, 65535)(port); err != nil {
		return "", fmt.Errorf("%q has a bad port: write it as https://host:6443", text)
	}
	return "https://" + net.JoinHostPort(u.Hostname(), port), nil
}

func parsePath(text string) (string, error) {
	if !filepath.IsAbs(text) || strings.ContainsRune(text, 0) {
		return "", fmt.Errorf("%q must be an absolute path", text)
	}
	return filepath.Clean(text), nil
}

func parseDomain(text string) (string, error) {
	text = strings.TrimSuffix(text, ".")
	if problems := validation.IsDNS1123Subdomain(text); len(problems) > 0 {
		return "", fmt.Errorf("%q is not a DNS domain such as cluster.local", text)
	}
	return text, nil
}

func parseNodeIP(text string) (netip.Addr, error) {
	addr, err := parseAddr(text)
	if err != nil {
		return addr, err
	}
	if addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast() {
		return addr, fmt.Errorf("%q cannot be reached from other nodes: use an address of an interface", text)
	}
	return addr, nil
}

func parsePrefix(text string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return prefix, fmt.Errorf("%q is not a CIDR such as 10.244.0.0/16", text)
	}
	if prefix != prefix.Masked() {
		return prefix, fmt.Errorf("%q has bits set behind the mask: write %s", text, prefix.Masked())
	}
	return prefix, nil
}

func parseInt(low, high int) func(string) (int, error) {
	return func(text string) (int, error) {
		n, err := strconv.Atoi(text)
		if err != nil || n < low || n > high {
			return 0, fmt.Errorf("%q must be a whole number from %d to %d", text, low, high)
		}
		return n, nil
	}
}

// parsePidsLimit leaves room for a pod's own processes: one for each of some containers.
func parsePidsLimit(text string) (int, error) {
	if text == "-1" {
		return -1, nil
	}
	n, err := parseInt(16, 1<<22)(text)
	if err != nil {
		return 0, fmt.Errorf("%w, or -1 for none", err)
	}
	return n, nil
}

// namespacedSysctls are the groups that the kernel keeps per namespace, as a kubelet has them.
var namespacedSysctls = []string{"kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.", "net."}

var sysctlPattern = regexp.MustCompile(`^[a-z0-9]([-_a-z0-9]*[a-z0-9])?([./][a-z0-9*]([-_a-z0-9*]*[a-z0-9*])?)*$`)

// parseSysctl accepts a sysctl, or a group of them that ends in *, that is namespaced.
func parseSysctl(text string) (string, error) {
	name := strings.ReplaceAll(text, "/", ".")
	prefix := strings.TrimSuffix(name, "*")
	if !sysctlPattern.MatchString(text) || strings.Contains(prefix, "*") {
		return "", fmt.Errorf("%q is not a sysctl such as net.core.somaxconn, nor a group such as net.*", text)
	}
	if !slices.ContainsFunc(namespacedSysctls, func(group string) bool { return strings.HasPrefix(prefix, group) }) {
		return "", fmt.Errorf("%q is not namespaced: a pod would change the whole host; use kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.* or net.*", text)
	}
	return name, nil
}

func parseBool(text string) (bool, error) {
	switch text {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%q must be true or false", text)
}

func parseLogSize(text string) (int64, error) {
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Value() < 1<<16 || q.Cmp(maxLogFile) > 0 {
		return 0, fmt.Errorf("%q must be a size from 64Ki to %s, such as 10Mi", text, maxLogFile.String())
	}
	return q.Value(), nil
}

func parseLevel(text string) (slog.Level, error) {
	i := slices.Index([]string{"debug", "info", "warn", "error"}, text)
	if i < 0 {
		return 0, fmt.Errorf("%q must be one of debug, info, warn, error", text)
	}
	return slog.Level(4*i) + slog.LevelDebug, nil
}

// resources reads a mapping of resource names to amounts.
func (d *decoder) resources(key string, node *yaml.Node) corev1.ResourceList {
	list := corev1.ResourceList{}
	d.pairs(key, node, func(key string, name, value *yaml.Node) {
		resourceName := corev1.ResourceName(name.Value)
		if !slices.Contains(reservable, resourceName) {
			d.fail(name.Line, key, "cannot be reserved: use cpu, memory, ephemeral-storage or pid")
			return
		}
		if q, ok := parseNode(d, key, value, parseAmount); ok {
			list[resourceName] = q
		}
	})
	return list
}

func parseAmount(text string) (resource.Quantity, error) {
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() < 0 {
		return q, fmt.Errorf("%q is not an amount such as 500m or 1Gi", text)
	}
	return q, nil
}
