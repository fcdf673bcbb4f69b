package config

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
	corev1 "k8s.io/api/core/v1"
)

const head = "apiVersion: vk-metal.io/v1alpha1\nkind: NodeConfig\napiServers: [https://192.0.2.1:6443]\n"

const full = head + `nodeName: metal-0
clusterCA: /etc/pki/ca.crt
clusterDNS: [10.96.0.10, "fd00::a"]
clusterDomain: cluster.example.
nodeIPs: [192.0.2.10, "2001:db8::10"]
nodeLabels:
  node.kubernetes.io/rack: r1
  example.com/disk: ssd
registerWithTaints:
  - {key: dedicated, value: db, effect: NoSchedule}
providerID: metal3://0f5dd28c
maxPods: 250
kubeReserved: {cpu: 100m, memory: 256Mi}
systemReserved: {memory: 1Gi}
staticPodPath: /etc/kubernetes/manifests/
kubeAPIQPS: 20
kubeAPIBurst: 40
podPidsLimit: 4096
seccompDefault: true
imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages
preloadedImagesVerificationAllowlist: [busybox, "registry.example:5000/team/*"]
allowedUnsafeSysctls: [net.core.somaxconn, "kernel.msg*", net/ipv4/*]
registries:
  configPath: /srv/certs.d
  credentialProviderConfig: /etc/credentials.yaml
  credentialProviderBinDir: /usr/libexec/credentials
hostImages:
  enabled: true
  roots: [{name: web, path: /srv/web.raw, verity: signed}, {name: trixie, path: /srv/trixie/}]
network:
  mtu: 1400
  masquerade: false
  encapsulation: CrossSubnet
  clusterCIDRs: [10.244.0.0/16, "fd01::/48"]
logs: {maxSize: 50Mi, maxFiles: 3}
imageGCHighThresholdPercent: 70
imageGCLowThresholdPercent: 50
imageMinimumGCAge: 1h
shutdownGracePeriod: 30s
shutdownGracePeriodCriticalPods: 10s
stopHold: {enabled: true, settleTime: 3s, maxGracePercent: 40}
listen: {address: 192.0.2.10, port: 10251}
evictionHard: {memory.available: 200Mi, nodefs.available: 7%}
evictionSoft: {memory.available: 1Gi}
evictionSoftGracePeriod: {memory.available: 90s}
evictionMinimumReclaim: {memory.available: 50Mi}
evictionPressureTransitionPeriod: 30s
evictionMaxPodGracePeriod: 20
mergeDefaultEvictionSettings: true
enableSystemLogQuery: true
logLevel: debug
`

func TestParseFull(t *testing.T) {
	c, err := Parse("config.yaml", []byte(full))
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	if c.NodeName != "metal-0" || c.ClusterDomain != "cluster.example" || c.MaxPods != 250 || c.ProviderID != "metal3://0f5dd28c" || !c.SystemLogQuery || c.LogLevel != slog.LevelDebug {
		t.Errorf("scalars: %+v", c)
	}
	if c.Logs != (Logs{50 << 20, 3}) || c.Network.Masquerade || c.Network.MTU != 1400 || c.Network.Encapsulation != "CrossSubnet" || c.Network.VXLANPort != 4789 ||
		!c.HostImages.Enabled || !slices.Equal(c.HostImages.Roots, []HostRoot{{"web", "/srv/web.raw", "signed"}, {"trixie", "/srv/trixie", ""}}) {
		t.Errorf("sections: %+v %+v", c.Logs, c.Network)
	}
	if v := c.ImagePullVerification; v.Policy != "NeverVerifyAllowlistedImages" || !slices.Equal(v.Allowlist, []string{"busybox", "registry.example:5000/team/*"}) {
		t.Errorf("verification %+v", v)
	}
	if want := []string{"net.core.somaxconn", "kernel.msg*", "net.ipv4.*"}; !c.SeccompDefault || c.PodPidsLimit != 4096 || c.KubeAPIQPS != 20 || c.KubeAPIBurst != 40 || !slices.Equal(c.AllowedUnsafeSysctls, want) {
		t.Errorf("seccompDefault %v, sysctls %q", c.SeccompDefault, c.AllowedUnsafeSysctls)
	}
	if want := netip.MustParseAddr("2001:db8::10"); len(c.NodeIPs) != 2 || c.NodeIPs[1] != want {
		t.Errorf("nodeIPs = %v", c.NodeIPs)
	}
	if c.ImageGC != (ImageGC{70, 50, time.Hour}) {
		t.Errorf("image GC: %+v", c.ImageGC)
	}
	if c.StopHold != (StopHold{true, 3 * time.Second, 40}) {
		t.Errorf("hold: %+v", c.StopHold)
	}
	if c.StaticPodPath != "/etc/kubernetes/manifests" {
		t.Errorf("static pods: %q", c.StaticPodPath)
	}
	if c.Shutdown != (Shutdown{30 * time.Second, 10 * time.Second}) {
		t.Errorf("shutdown: %+v", c.Shutdown)
	}
	memory := c.Reserved()[corev1.ResourceMemory]
	if memory.String() != "1280Mi" {
		t.Errorf("reserved memory = %s", memory.String())
	}
	if len(c.RegisterWithTaints) != 1 || c.RegisterWithTaints[0].Effect != corev1.TaintEffectNoSchedule {
		t.Errorf("taints = %v", c.RegisterWithTaints)
	}
}

func TestParseDefaults(t *testing.T) {
	c, err := Parse("config.yaml", []byte(head))
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	if c.MaxPods != 110 || c.Listen.Port != 10250 || !c.Network.Masquerade || c.Registries.ConfigPath != "/etc/vk-metal/certs.d" {
		t.Errorf("defaults: %+v", c)
	}
}

func TestParsePlugins(t *testing.T) {
	c, err := Parse("config.yaml", []byte(head+"network: {plugin: cni, cniBinDirs: [/srv/cni]}\nserviceProxy: external\n"))
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	if n := c.Network; n.Plugin != "cni" || n.CNIConfDir != "/etc/cni/net.d" || !slices.Equal(n.CNIBinDirs, []string{"/srv/cni"}) {
		t.Errorf("network: %+v", n)
	}
}

func TestParseEncryption(t *testing.T) {
	c, err := Parse("config.yaml", []byte(head+"network: {encryption: Required, clusterCIDRs: [10.244.0.0/16], wireguardPort: 6000, wireguardRotation: 0s, wireguardKeepalive: 25s}\n"))
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	if n := c.Network; n.Encryption != "Required" || n.WireGuardPort != 6000 || n.WireGuardRotation != 0 || n.WireGuardKeepalive != 25*time.Second {
		t.Errorf("network: %+v", n)
	}
	if c, err = Parse("config.yaml", []byte(head)); err != nil || c.Network.Encryption != "None" || c.Network.WireGuardPort != 51820 || c.Network.WireGuardRotation != 24*time.Hour {
		t.Errorf("defaults: %+v, %v", c.Network, err)
	}
}

func TestParseMistakes(t *testing.T) {
	cases := map[string]struct{ text, want string }{
		"empty file":          {"", "f.yaml: the file is empty: start it with apiVersion"},
		"not YAML":            {head + "a: [", "f.yaml:4: not YAML:"},
		"a list":              {"- a\n", "f.yaml:1: the file must be a mapping"},
		"two documents":       {head + "---\na: b\n", "exactly one YAML document"},
		"old version":         {"apiVersion: v1\nkind: NodeConfig\napiServers: [https://a]\n", `f.yaml:1: apiVersion: "v1" is not supported`},
		"missing kind":        {"apiVersion: vk-metal.io/v1alpha1\n", "kind: missing: write kind: NodeConfig"},
		"no API server":       {"apiVersion: vk-metal.io/v1alpha1\nkind: NodeConfig\n", "apiServers: missing"},
		"typing mistake":      {head + "maxPod: 3\n", "f.yaml:4: maxPod: unknown key: did you mean maxPods?"},
		"wrong case":          {head + "clusterDns: [1.1.1.1]\n", "did you mean clusterDNS?"},
		"unknown nested":      {head + "network:\n  speed: 3\n", "f.yaml:5: network.speed: unknown key: remove it, or use one of mtu"},
		"given twice":         {head + "maxPods: 3\nmaxPods: 4\n", "f.yaml:5: maxPods: given twice, first in line 4"},
		"anchor":              {head + "clusterDNS: &a [1.1.1.1]\n", "anchors and aliases"},
		"scalar for list":     {head + "clusterDNS: 1.1.1.1\n", "f.yaml:4: clusterDNS: must be a list"},
		"list for scalar":     {head + "maxPods: [1]\n", "maxPods: must be a single value"},
		"scalar for section":  {head + "network: 3\n", "network: must be a mapping"},
		"bad number":          {head + "maxPods: 0\n", `maxPods: "0" must be a whole number from 1 to 10000`},
		"bad URL":             {head[:len(head)-1] + "\nkubeconfig: x\n", `kubeconfig: "x" must be an absolute path`},
		"http URL":            {"apiVersion: vk-metal.io/v1alpha1\nkind: NodeConfig\napiServers: [http://a:1]\n", `apiServers: "http://a:1" is not an API server`},
		"loopback node IP":    {head + "nodeIPs: [127.0.0.1]\n", "cannot be reached from other nodes"},
		"an allowlist alone":  {head + "preloadedImagesVerificationAllowlist: [busybox]\n", "needs imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages"},
		"an allowlisted tag":  {head + "preloadedImagesVerificationAllowlist: [\"busybox:1\"]\n", "must be a repository without tag and digest"},
		"an allowlisted star": {head + "preloadedImagesVerificationAllowlist: [\"registry.example/a*\"]\n", "must be a repository without tag and digest"},
		"an odd policy":       {head + "imagePullCredentialsVerificationPolicy: Sometimes\n", "must be one of NeverVerify, "},
		"half of providers":   {head + "registries: {credentialProviderBinDir: /x}\n", "give both credentialProviderConfig and credentialProviderBinDir"},
		"two IPv4":            {head + "nodeIPs: [192.0.2.1, 192.0.2.2]\n", "f.yaml:4: nodeIPs: give one address, or one IPv4 and one IPv6"},
		"forbidden label":     {head + "nodeLabels: {kubernetes.io/role: x}\n", "kubectl label node"},
		"forbidden role":      {head + "nodeLabels: {node-role.kubernetes.io/worker: \"\"}\n", "kubectl label node"},
		"bad label value":     {head + "nodeLabels: {a: \"b c\"}\n", "is not a label value"},
		"taint without key":   {head + "registerWithTaints: [{effect: NoSchedule}]\n", "a taint needs key and effect"},
		"taint effect":        {head + "registerWithTaints: [{key: a, effect: Nope}]\n", `"Nope" must be NoSchedule`},
		"host bits":           {head + "network: {podCIDRs: [10.0.0.1/24]}\n", "write 10.0.0.0/24"},
		"reserved resource":   {head + "kubeReserved: {gpu: 1}\n", "kubeReserved.gpu: cannot be reserved"},
		"negative amount":     {head + "kubeReserved: {cpu: -1}\n", "is not an amount"},
		"bool words":          {head + "hostImages: {enabled: yes}\n", `"yes" must be true or false`},
		"root without path":   {head + "hostImages: {roots: [{name: web}]}\n", "f.yaml:4: hostImages.roots[0]: give a name"},
		"root's name":         {head + "hostImages: {roots: [{name: Web, path: /srv}]}\n", `"Web" cannot be part of an image's name`},
		"root host":           {head + "hostImages: {roots: [{name: host, path: /srv}]}\n", "is the name of the host's own root"},
		"two roots":           {head + "hostImages: {roots: [{name: a, path: /a}, {name: a, path: /b}]}\n", `hostImages.roots[1].name: "a" is the name of another root`},
		"verity":              {head + "hostImages: {roots: [{name: a, path: /a, verity: maybe}]}\n", `"maybe" must be one of hashed, signed`},
		"level":               {head + "logLevel: loud\n", "must be one of debug"},
		"not UTF-8":           {head + "nodeName: \xff\n", "not UTF-8"},
		"a host's sysctl":     {head + "allowedUnsafeSysctls: [vm.swappiness]\n", `"vm.swappiness" is not namespaced`},
		"no requests":         {head + "kubeAPIQPS: 0\n", "f.yaml:4: kubeAPIQPS: "},
		"few processes":       {head + "podPidsLimit: 0\n", `"0" must be a whole number from 16 to 4194304, or -1 for none`},
		"every sysctl":        {head + "allowedUnsafeSysctls: [\"*\"]\n", "is not a sysctl"},
		"provider":            {head + "providerID: a b\n", "f.yaml:4: providerID: \"a b\" must be one word, such as metal3://0f5dd28c-1f6b-4b51-a2ef-2bd7dd1a4e1c"},
		"thresholds":          {head + "imageGCLowThresholdPercent: 90\n", "f.yaml:4: imageGCLowThresholdPercent: must be below imageGCHighThresholdPercent, which is 85"},
		"critical pods":       {head + "shutdownGracePeriod: 5s\nshutdownGracePeriodCriticalPods: 10s\n", "f.yaml:5: shutdownGracePeriodCriticalPods: must not be more than shutdownGracePeriod, which is 5s"},
		"length of time":      {head + "imageMinimumGCAge: 2 days\n", "is not a length of time"},
		"log size":            {head + "logs: {maxSize: 1}\n", "from 64Ki to 16Gi"},
		"plugins and proxy":   {head + "network: {plugin: cni}\n", "f.yaml:4: serviceProxy: does not work with network.plugin: cni"},
		"plugins and BGP":     {head + "network: {plugin: cni, bgpConfig: /x}\nserviceProxy: external\n", "f.yaml:4: network.routing: does not work with network.plugin: cni"},
		"plugins and keys":    {head + "network: {plugin: cni, encryption: Preferred}\nserviceProxy: external\n", "f.yaml:4: network.encryption: does not work with network.plugin: cni"},
		"keys and BGP":        {head + "network: {encryption: Preferred, routing: BGP, bgpConfig: /x}\n", "f.yaml:4: network.encryption: does not work with network.routing: BGP"},
		"demand of what":      {head + "network: {encryption: Required}\n", "f.yaml:4: network.encryption: Required needs network.clusterCIDRs"},
		"one port for both":   {head + "network: {encryption: Preferred, encapsulation: Always, wireguardPort: 4788}\n", "network.wireguardPort: this port and the next one are WireGuard's"},
		"no such encryption":  {head + "network: {encryption: IPsec}\n", "network.encryption: "},
		"no next port":        {head + "network: {wireguardPort: 65535}\n", "network.wireguardPort: "},
		"hasty rotation":      {head + "network: {wireguardRotation: 1m}\n", "network.wireguardRotation: 1m is too short"},
		"keepalive":           {head + "network: {wireguardKeepalive: 1500ms}\n", "network.wireguardKeepalive: must be whole seconds"},
		"BGP without config":  {head + "network: {routing: BGP}\n", "f.yaml:4: network.routing: BGP needs a BGP configuration"},
		"cache of nothing":    {head + "dnsCache: true\n", "set clusterDNS"},
		"bad interface":       {head + "network: {lanInterfaces: [a/b]}\n", "cannot be the name of a network interface"},
		"bad ConfigMap":       {head + "network: {bgpConfigMap: bgp}\n", "must be namespace/name"},
		"four DNS servers":    {head + "clusterDNS: [1.1.1.1, 1.1.1.2, 1.1.1.3, 1.1.1.4]\n", "three servers at most"},
		"complex mapping key": {head + "? [a]\n: b\n", "keys must be plain words"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("f.yaml", []byte(tc.text))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Parse = %v\nwant ...%s...", err, tc.want)
			}
		})
	}
}

func TestParseReportsAllMistakesInOrder(t *testing.T) {
	_, err := Parse("f.yaml", []byte(head+"maxPods: x\nnope: 1\nnetwork:\n  mtu: -1\n"))
	var errs Errors
	if !errors.As(err, &errs) {
		t.Fatalf("Parse = %v, want Errors", err)
	}
	var keys []string
	for _, e := range errs {
		keys = append(keys, e.Key)
	}
	if want := []string{"maxPods", "nope", "network.mtu"}; !slices.Equal(keys, want) {
		t.Errorf("mistakes at %v, want %v", keys, want)
	}
}

// TestEveryKeyIsDocumented: docs/configuration.md names each key and, where it is a plain
// one, its default.
func TestEveryKeyIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	var keys func(path string, fields []field)
	d := &decoder{}
	keys = func(path string, fields []field) {
		for _, f := range fields {
			key := join(path, f.key)
			d.errs = nil
			f.set(key, &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Value: "?"}, {Kind: yaml.ScalarNode}}})
			if _, known, section := strings.Cut(d.errs.Error(), "use one of "); section && strings.Contains(d.errs.Error(), "unknown key") {
				for name := range strings.SplitSeq(known, ", ") {
					keys(key, []field{{key: name, set: func(string, *yaml.Node) {}}})
				}
				continue
			}
			if !strings.Contains(string(doc), "`"+key+"`") {
				t.Errorf("docs/configuration.md does not name %s", key)
			}
		}
	}
	config := Default()
	keys("", config.fields(d))
}

func TestEdit(t *testing.T) {
	joined := Joined{APIServers: []string{"https://192.0.2.9:6443"}, NodeName: "n1"}
	t.Run("new file", func(t *testing.T) {
		out, err := Edit("f.yaml", nil, joined, false)
		if err != nil {
			t.Fatalf("Edit: %v", err)
		}
		c, err := Parse("f.yaml", out)
		if err != nil || c.NodeName != "n1" || !slices.Equal(c.APIServers, joined.APIServers) {
			t.Errorf("Parse = %+v, %v", c, err)
		}
	})
	old := "# ours\napiVersion: vk-metal.io/v1alpha1\nkind: NodeConfig\nmaxPods: 7 # small\n"
	t.Run("keeps the rest and comments", func(t *testing.T) {
		out, err := Edit("f.yaml", []byte(old), joined, false)
		if err != nil {
			t.Fatalf("Edit: %v", err)
		}
		for _, want := range []string{"# ours", "maxPods: 7 # small", "nodeName: n1"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("lost %q:\n%s", want, out)
			}
		}
		again, err := Edit("f.yaml", out, joined, false)
		if err != nil || string(again) != string(out) {
			t.Errorf("second Edit changed the file: %v\n%s", err, again)
		}
	})
	t.Run("refuses another value", func(t *testing.T) {
		_, err := Edit("f.yaml", []byte(old+"nodeName: n2\n"), joined, false)
		var conflict *ConflictError
		if !errors.As(err, &conflict) || conflict.Key != "nodeName" || conflict.Line != 5 {
			t.Errorf("Edit = %v, want a conflict on nodeName in line 5", err)
		}
	})
	t.Run("force", func(t *testing.T) {
		out, err := Edit("f.yaml", []byte(old+"nodeName: n2\n"), joined, true)
		if err != nil || strings.Contains(string(out), "n2") {
			t.Errorf("Edit = %v\n%s", err, out)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(head + "a: &x [*x]\n"))
	f.Add([]byte("? {a: b}\n: - c\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f.yaml", data)
		if err != nil {
			var errs Errors
			if !errors.As(err, &errs) || len(errs) == 0 {
				t.Fatalf("Parse error is not Errors: %v", err)
			}
			return
		}
		if len(c.APIServers) == 0 && c.Kubeconfig == "" {
			t.Fatal("accepted a configuration without API server")
		}
		out, err := Edit("f.yaml", data, Joined{APIServers: []string{"https://a:1"}, NodeName: "n"}, true)
		if err != nil {
			t.Fatalf("Edit of a good file: %v", err)
		}
		if _, err := Parse("f.yaml", out); err != nil {
			t.Fatalf("Edit made a bad file: %v\n%s", err, out)
		}
	})
}
