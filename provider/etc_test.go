package provider

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// lone is a worker without surroundings, for what only computes.
func lone(t *testing.T, hostResolvConf string) *worker {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte(hostResolvConf), 0o644); err != nil {
		t.Fatal(err)
	}
	return &worker{p: &Provider{deps: Deps{
		NodeName: "n1", HostIPs: func() []string { return []string{"192.0.2.1", "2001:db8::1"} },
		DNS: DNSConfig{ClusterDNS: []string{"10.96.0.10"}, ClusterDomain: "cluster.local", HostResolvConf: path},
	}}}
}

func etcPod(change func(*corev1.PodSpec)) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web-0", UID: "u-1", Labels: map[string]string{"a.b/c": "d"}}}
	pod.Spec.DNSPolicy = corev1.DNSClusterFirst
	if change != nil {
		change(&pod.Spec)
	}
	return pod
}

func TestResolvConf(t *testing.T) {
	const host = "# a comment\n; another\nsearch old.example\nsearch corp.example. lab.example\nnameserver 192.0.2.53\nnameserver 192.0.2.54\noptions rotate\n"
	many := make([]string, 40)
	for i := range many {
		many[i] = strings.Repeat("x", 60) + string(rune('a'+i%26)) + strings.Repeat("y", i/26+1) + ".example"
	}
	for name, tc := range map[string]struct {
		change func(*corev1.PodSpec)
		want   string
	}{
		"cluster first": {nil, "search ns.svc.cluster.local svc.cluster.local cluster.local corp.example lab.example\nnameserver 10.96.0.10\noptions ndots:5\n"},
		"default": {
			func(s *corev1.PodSpec) { s.DNSPolicy = corev1.DNSDefault },
			"search corp.example lab.example\nnameserver 192.0.2.53\nnameserver 192.0.2.54\noptions rotate\n",
		},
		"host network": {
			func(s *corev1.PodSpec) { s.HostNetwork = true },
			"search corp.example lab.example\nnameserver 192.0.2.53\nnameserver 192.0.2.54\noptions rotate\n",
		},
		"host network with the cluster's": {
			func(s *corev1.PodSpec) { s.HostNetwork, s.DNSPolicy = true, corev1.DNSClusterFirstWithHostNet },
			"search ns.svc.cluster.local svc.cluster.local cluster.local corp.example lab.example\nnameserver 10.96.0.10\noptions ndots:5\n",
		},
		"none": {func(s *corev1.PodSpec) {
			s.DNSPolicy = corev1.DNSNone
			s.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.9"}, Searches: []string{"own.example"}}
		}, "search own.example\nnameserver 192.0.2.9\n"},
		"merged": {func(s *corev1.PodSpec) {
			s.DNSConfig = &corev1.PodDNSConfig{
				Nameservers: []string{"10.96.0.10", "192.0.2.9"}, Searches: []string{"corp.example", "own.example"},
				Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: ptr.To("2")}, {Name: "edns0"}},
			}
		}, "search ns.svc.cluster.local svc.cluster.local cluster.local corp.example lab.example own.example\n" +
			"nameserver 10.96.0.10\nnameserver 192.0.2.9\noptions ndots:2 edns0\n"},
		"too many servers": {func(s *corev1.PodSpec) {
			s.DNSPolicy = corev1.DNSNone
			s.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"}}
		}, "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := lone(t, host).resolvConf(etcPod(tc.change))
			if err != nil || string(got) != tc.want {
				t.Errorf("got %q, %v\nwant %q", got, err, tc.want)
			}
		})
	}
	got, err := lone(t, host).resolvConf(etcPod(func(s *corev1.PodSpec) {
		s.DNSPolicy, s.DNSConfig = corev1.DNSNone, &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.1"}, Searches: many}
	}))
	searches := strings.Fields(strings.SplitN(string(got), "\n", 2)[0])[1:]
	if text := strings.Join(searches, " "); err != nil || len(searches) > maxSearchDomains || len(text) > maxSearchChars || len(searches) < 20 {
		t.Errorf("%d search domains of %d characters: %v", len(searches), len(text), err)
	}
}

func TestHostsAndHostname(t *testing.T) {
	const head = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
	long := strings.Repeat("a", 62) + "-tail"
	for name, tc := range map[string]struct {
		change      func(*corev1.PodSpec)
		host, hosts string
	}{
		"by the pod's name": {nil, "web-0", "10.0.0.1\tweb-0\nfd00::1\tweb-0\n"},
		"by its own":        {func(s *corev1.PodSpec) { s.Hostname = "db" }, "db", "10.0.0.1\tdb\nfd00::1\tdb\n"},
		"with a subdomain":  {func(s *corev1.PodSpec) { s.Subdomain = "web" }, "web-0", "10.0.0.1\tweb-0.web.ns.svc.cluster.local\tweb-0\nfd00::1\tweb-0.web.ns.svc.cluster.local\tweb-0\n"},
		"as full name":      {func(s *corev1.PodSpec) { s.Subdomain, s.SetHostnameAsFQDN = "web", ptr.To(true) }, "web-0.web.ns.svc.cluster.local", "10.0.0.1\tweb-0.web.ns.svc.cluster.local\tweb-0\nfd00::1\tweb-0.web.ns.svc.cluster.local\tweb-0\n"},
		"cut at 63 bytes":   {func(s *corev1.PodSpec) { s.Hostname = long }, long[:62], "10.0.0.1\t" + long[:62] + "\nfd00::1\t" + long[:62] + "\n"},
		"overridden":        {func(s *corev1.PodSpec) { s.HostnameOverride = ptr.To("x.example"); s.Subdomain = "web" }, "x.example", "10.0.0.1\tx.example\nfd00::1\tx.example\n"},
		"with other entries": {func(s *corev1.PodSpec) {
			s.HostAliases = []corev1.HostAlias{{IP: "192.0.2.7", Hostnames: []string{"a", "b"}}}
		}, "web-0", "10.0.0.1\tweb-0\nfd00::1\tweb-0\n\n# Entries added by HostAliases.\n192.0.2.7\ta\tb\n"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := etcPod(tc.change)
			host, fqdn := lone(t, "").hostname(pod)
			got, err := hostsFile(pod, []string{"10.0.0.1", "fd00::1"}, host, fqdn)
			if err != nil || host != tc.host || string(got) != head+tc.hosts {
				t.Errorf("hostname %q, hosts %q, %v", host, got, err)
			}
		})
	}
}
