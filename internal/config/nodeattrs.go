package config

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// selfLabels are the kubernetes.io labels that NodeRestriction lets a node set on itself
// (k8s.io/kubelet/pkg/apis.IsKubeletLabel, 1.35).
var selfLabels = []string{
	corev1.LabelHostname, corev1.LabelTopologyZone, corev1.LabelTopologyRegion,
	corev1.LabelFailureDomainBetaZone, corev1.LabelFailureDomainBetaRegion,
	corev1.LabelInstanceType, corev1.LabelInstanceTypeStable,
	corev1.LabelOSStable, corev1.LabelArchStable, "beta.kubernetes.io/os", "beta.kubernetes.io/arch",
}

var selfLabelDomains = []string{"kubelet.kubernetes.io", "node.kubernetes.io"}

// labels reads nodeLabels.
func (d *decoder) labels(key string, node *yaml.Node) map[string]string {
	labels := map[string]string{}
	d.pairs(key, node, func(key string, name, value *yaml.Node) {
		text, ok := d.scalar(key, value)
		if !ok {
			return
		}
		if err := checkLabel(name.Value, text); err != nil {
			d.fail(name.Line, key, "%s", err)
			return
		}
		labels[name.Value] = text
	})
	return labels
}

func checkLabel(name, value string) error {
	if problems := validation.IsQualifiedName(name); len(problems) > 0 {
		return fmt.Errorf("not a label name: %s", problems[0])
	}
	if problems := validation.IsValidLabelValue(value); len(problems) > 0 {
		return fmt.Errorf("%q is not a label value: %s", value, problems[0])
	}
	domain, _, hasDomain := strings.Cut(name, "/")
	if !hasDomain || !underAny(domain, []string{"kubernetes.io", "k8s.io"}) ||
		slices.Contains(selfLabels, name) || underAny(domain, selfLabelDomains) {
		return nil
	}
	return errors.New("the API server lets no node set this label on itself: set it with kubectl label node")
}

func underAny(domain string, parents []string) bool {
	return slices.ContainsFunc(parents, func(parent string) bool {
		return domain == parent || strings.HasSuffix(domain, "."+parent)
	})
}

// taints reads registerWithTaints: a list of mappings with key, value and effect.
func (d *decoder) taints(key string, node *yaml.Node) (taints []corev1.Taint) {
	d.items(key, node, func(item *yaml.Node) {
		var taint corev1.Taint
		before := len(d.errs)
		d.mapping(key, item,
			parsed(d, "key", &taint.Key, parseTaintKey),
			parsed(d, "value", &taint.Value, parseTaintValue),
			parsed(d, "effect", &taint.Effect, parseEffect))
		if len(d.errs) > before {
			return
		}
		if taint.Key == "" || taint.Effect == "" {
			d.fail(item.Line, key, "a taint needs key and effect")
			return
		}
		taints = append(taints, taint)
	})
	return taints
}

func parseTaintKey(text string) (string, error) {
	if problems := validation.IsQualifiedName(text); len(problems) > 0 {
		return "", fmt.Errorf("%q is not a taint key: %s", text, problems[0])
	}
	return text, nil
}

func parseTaintValue(text string) (string, error) {
	if problems := validation.IsValidLabelValue(text); len(problems) > 0 {
		return "", fmt.Errorf("%q is not a taint value: %s", text, problems[0])
	}
	return text, nil
}

func parseEffect(text string) (corev1.TaintEffect, error) {
	effects := []corev1.TaintEffect{
		corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute,
	}
	if !slices.Contains(effects, corev1.TaintEffect(text)) {
		return "", fmt.Errorf("%q must be NoSchedule, PreferNoSchedule or NoExecute", text)
	}
	return corev1.TaintEffect(text), nil
}

// crossCheck finds what no single key can: missing and contradicting ones.
func (d *decoder) crossCheck(c *Config, root *yaml.Node) {
	for _, key := range []string{"apiVersion", "kind"} {
		if lookup(root, key) == nil {
			d.fail(root.Line, key, "missing: write %s: %s", key, map[string]string{"apiVersion": APIVersion, "kind": Kind}[key])
		}
	}
	if len(c.APIServers) == 0 && c.Kubeconfig == "" && len(d.errs) == 0 {
		d.fail(0, "apiServers", "missing: name at least one API server, or run vk-metal join")
	}
	if len(c.NodeIPs) > 2 || len(c.NodeIPs) == 2 && c.NodeIPs[0].Is4() == c.NodeIPs[1].Is4() {
		d.fail(lookup(root, "nodeIPs").Line, "nodeIPs", "give one address, or one IPv4 and one IPv6 address")
	}
	d.checkThresholds(c, root)
	d.checkEviction(&c.Eviction, root)
	if v := c.ImagePullVerification; len(v.Allowlist) > 0 && v.Policy != "NeverVerifyAllowlistedImages" {
		d.fail(lookup(root, "preloadedImagesVerificationAllowlist").Line, "preloadedImagesVerificationAllowlist",
			"needs imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages")
	}
	if r := c.Registries; (r.CredentialProviderConfig == "") != (r.CredentialProviderBinDir == "") {
		d.fail(lookup(root, "registries").Line, "registries", "give both credentialProviderConfig and credentialProviderBinDir, or neither")
	}
	if network := lookup(root, "network"); c.Network.Routing != "HostGW" && !c.Network.BGPEnabled() {
		d.fail(network.Line, "network.routing", "%s needs a BGP configuration: set network.bgpConfig or network.bgpConfigMap", c.Network.Routing)
	}
	if len(c.Network.CNIBinDirs) == 0 {
		c.Network.CNIBinDirs = []string{"/opt/cni/bin", "/usr/lib/cni"}
	}
	d.checkPlugin(c, root)
	d.checkEncryption(&c.Network, root)
	if critical := lookup(root, "shutdownGracePeriodCriticalPods"); critical != nil && c.Shutdown.CriticalPods > c.Shutdown.GracePeriod {
		d.fail(critical.Line, "shutdownGracePeriodCriticalPods", "must not be more than shutdownGracePeriod, which is %s", c.Shutdown.GracePeriod)
	}
	if c.DNSCache && len(c.ClusterDNS) == 0 {
		d.fail(lookup(root, "dnsCache").Line, "dnsCache", "needs the addresses of the cluster's DNS: set clusterDNS")
	}
	if len(c.ClusterDNS) > 3 {
		d.fail(lookup(root, "clusterDNS").Line, "clusterDNS", "resolvers use three servers at most")
	}
}

// checkPlugin refuses what goes by vk-metal's own links and routes where pods have others.
func (d *decoder) checkPlugin(c *Config, root *yaml.Node) {
	if c.Network.Plugin != "cni" {
		return
	}
	line := lookup(root, "network").Line
	for _, part := range []struct {
		on        bool
		key, want string
	}{
		{c.ServiceProxy != "external", "serviceProxy", "external, and run the plugin's or a kube-proxy"},
		{c.NetworkPolicy != "external", "networkPolicy", "external"},
		{c.DNSCache, "dnsCache", "false"},
		{c.Network.Routing != "HostGW" || c.Network.BGPEnabled(), "network.routing", "HostGW (which makes no routes then) without BGP"},
		{c.Network.AnnounceLAN, "network.announceLAN", "false"},
		{c.Network.Encapsulation != "Never", "network.encapsulation", "Never"},
		{c.Network.Encryption != "None", "network.encryption", "None, and have the plugin encrypt"},
	} {
		if part.on {
			d.fail(line, part.key, "does not work with network.plugin: cni, whose pods have other links: set it to %s", part.want)
		}
	}
}

func (d *decoder) checkThresholds(c *Config, root *yaml.Node) {
	low, high := lookup(root, "imageGCLowThresholdPercent"), lookup(root, "imageGCHighThresholdPercent")
	if c.ImageGC.LowThresholdPercent < c.ImageGC.HighThresholdPercent {
		return
	}
	if low != nil {
		d.fail(low.Line, "imageGCLowThresholdPercent", "must be below imageGCHighThresholdPercent, which is %d", c.ImageGC.HighThresholdPercent)
	} else if high != nil {
		d.fail(high.Line, "imageGCHighThresholdPercent", "must be above imageGCLowThresholdPercent, which is %d", c.ImageGC.LowThresholdPercent)
	}
}

// lookup returns the value node of a top-level key, or nil.
func lookup(root *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(root.Content); i += 2 {
		if root.Content[i].Value == key {
			return root.Content[i+1]
		}
	}
	return nil
}

// ResolveNodeName is NodeName, or else the host name in lower case, as a kubelet takes it.
func (c *Config) ResolveNodeName() (string, error) {
	if c.NodeName != "" {
		return c.NodeName, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("find the host name: %w", err)
	}
	name, err := parseNodeName(strings.ToLower(strings.TrimSpace(host)))
	if err != nil {
		return "", fmt.Errorf("take the host name as node name: %w, or set nodeName", err)
	}
	return name, nil
}
