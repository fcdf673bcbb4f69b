package provider

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// etcFiles are the files of a pod that its containers see in /etc.
type etcFiles struct{ hosts, resolv, hostname, name string }

// Limits that resolvers know, and a kubelet applies (pkg/apis/core/validation).
const (
	maxNameservers   = 3
	maxSearchDomains = 32
	maxSearchChars   = 2048
	maxHostname      = 63
)

// dirEtc is where the pod's files are below its directory on disk.
const dirEtc = "etc"

// etcFiles writes the pod's files. Files that are there stay as they are: containers may
// have changed them, and they are bound by their inode.
func (w *worker) etcFiles(pod *corev1.Pod, ips []string) (etcFiles, error) {
	addresses := strings.Join(ips, ",")
	if w.etc.hosts != "" && w.etcIPs == addresses {
		return w.etc, nil
	}
	dir := filepath.Join(w.p.deps.Layout.PodLib(string(w.uid)), dirEtc)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return etcFiles{}, fmt.Errorf("make directory of pod's files: %w", err)
	}
	name, fqdn := w.hostname(pod)
	files := etcFiles{
		hosts: filepath.Join(dir, "hosts"), resolv: filepath.Join(dir, "resolv.conf"),
		hostname: filepath.Join(dir, "hostname"), name: name,
	}
	resolv, err := w.resolvConf(pod)
	if err != nil {
		return etcFiles{}, err
	}
	hosts, err := hostsFile(pod, ips, name, fqdn)
	if err != nil {
		return etcFiles{}, err
	}
	stamp := filepath.Join(dir, "address")
	old, _ := os.ReadFile(stamp)
	same := string(old) == addresses
	for _, f := range []struct {
		path    string
		content []byte
	}{{files.hosts, hosts}, {files.resolv, resolv}, {files.hostname, []byte(name + "\n")}} {
		if _, err := os.Lstat(f.path); err == nil && same {
			continue
		}
		if err := writeFile(f.path, f.content, 0o644); err != nil {
			return etcFiles{}, err
		}
	}
	if err := writeFile(stamp, []byte(addresses), 0o600); err != nil {
		return etcFiles{}, err
	}
	w.etc, w.etcIPs = files, addresses
	return files, nil
}

// hostname is the container's hostname and, with a subdomain, its full name.
func (w *worker) hostname(pod *corev1.Pod) (name, fqdn string) {
	spec := &pod.Spec
	if spec.HostNetwork {
		host, err := os.Hostname()
		if err != nil {
			host = w.p.deps.NodeName
		}
		return host, ""
	}
	if spec.HostnameOverride != nil {
		return *spec.HostnameOverride, ""
	}
	name = spec.Hostname
	if name == "" {
		name = pod.Name
	}
	if len(name) > maxHostname {
		name = strings.TrimRight(name[:maxHostname], "-.")
	}
	if spec.Subdomain != "" {
		fqdn = fmt.Sprintf("%s.%s.%s.svc.%s", name, spec.Subdomain, pod.Namespace, w.p.deps.DNS.ClusterDomain)
		if spec.SetHostnameAsFQDN != nil && *spec.SetHostnameAsFQDN {
			return fqdn, fqdn
		}
	}
	return name, fqdn
}

// hostsFile is a kubelet's /etc/hosts.
func hostsFile(pod *corev1.Pod, ips []string, name, fqdn string) ([]byte, error) {
	var b bytes.Buffer
	if pod.Spec.HostNetwork {
		host, err := os.ReadFile("/etc/hosts")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read the host's /etc/hosts: %w", err)
		}
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.Write(host)
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n" +
			"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n" +
			"fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		short, _, _ := strings.Cut(name, ".")
		for _, ip := range ips {
			if fqdn != "" {
				fmt.Fprintf(&b, "%s\t%s\t%s\n", ip, fqdn, short)
				continue
			}
			fmt.Fprintf(&b, "%s\t%s\n", ip, name)
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, alias := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", alias.IP, strings.Join(alias.Hostnames, "\t"))
		}
	}
	return b.Bytes(), nil
}

// resolver is the content of a resolv.conf.
type resolver struct{ servers, searches, options []string }

// resolvConf follows dnsPolicy and dnsConfig.
func (w *worker) resolvConf(pod *corev1.Pod) ([]byte, error) {
	dns := w.p.deps.DNS
	path := dns.HostResolvConf
	if path == "" {
		path = "/etc/resolv.conf"
	}
	host, err := readResolvConf(path)
	if err != nil {
		return nil, fmt.Errorf("read the host's resolv.conf: %w", err)
	}
	r := host
	switch policy := pod.Spec.DNSPolicy; {
	case policy == corev1.DNSNone:
		r = resolver{}
	case policy == corev1.DNSDefault, len(dns.ClusterDNS) == 0,
		pod.Spec.HostNetwork && policy != corev1.DNSClusterFirstWithHostNet:
	default:
		r = resolver{servers: dns.ClusterDNS, options: []string{"ndots:5"}}
		if d := dns.ClusterDomain; d != "" {
			r.searches = []string{pod.Namespace + ".svc." + d, "svc." + d, d}
		}
		r.searches = append(r.searches, host.searches...)
	}
	if c := pod.Spec.DNSConfig; c != nil {
		r.add(c)
	}
	return r.render(), nil
}

func readResolvConf(path string) (resolver, error) {
	var r resolver
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, err
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") || strings.HasPrefix(fields[0], ";") {
			continue
		}
		switch fields[0] {
		case "nameserver":
			r.servers = append(r.servers, fields[1])
		case "search", "domain":
			r.searches = nil
			for _, s := range fields[1:] {
				r.searches = append(r.searches, strings.TrimSuffix(s, "."))
			}
		case "options":
			r.options = fields[1:]
		}
	}
	return r, lines.Err()
}

func (r *resolver) add(c *corev1.PodDNSConfig) {
	r.servers = unique(append(slices.Clone(r.servers), c.Nameservers...))
	r.searches = unique(append(slices.Clone(r.searches), c.Searches...))
	options := slices.Clone(r.options)
	for _, o := range c.Options {
		entry := o.Name
		if o.Value != nil {
			entry += ":" + *o.Value
		}
		options = slices.DeleteFunc(options, func(old string) bool {
			name, _, _ := strings.Cut(old, ":")
			return name == o.Name
		})
		options = append(options, entry)
	}
	r.options = options
}

func unique(list []string) []string {
	var out []string
	for _, s := range list {
		if s != "" && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func (r resolver) render() []byte {
	var b bytes.Buffer
	searches := unique(r.searches)
	searches = searches[:min(len(searches), maxSearchDomains)]
	for len(strings.Join(searches, " ")) > maxSearchChars {
		searches = searches[:len(searches)-1]
	}
	if len(searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(searches, " "))
	}
	for _, s := range r.servers[:min(len(r.servers), maxNameservers)] {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(r.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(r.options, " "))
	}
	return b.Bytes()
}
