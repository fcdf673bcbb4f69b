package controlplane

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

// component is one process of the control plane.
type component struct {
	name     string // of the process in the rig
	program  string // in Options.Programs
	endpoint string
	args     []string
	health   string // URL that answers 200 once it is ready
}

// components lists all in the order in which they start.
func (cp *ControlPlane) components() []component {
	all := []component{cp.etcd()}
	for i := range cp.endpoints {
		all = append(all, cp.apiserver(i))
	}
	all = append(all, cp.controllerManager(), cp.scheduler())
	return all
}

// gated adds the feature gates to what starts a component, also when it is started again.
func (cp *ControlPlane) gated(c component) component {
	if cp.opts.FeatureGates == "" || c.program == "etcd" {
		return c
	}
	c.args = append(slices.Clip(c.args), "--feature-gates="+cp.opts.FeatureGates)
	if c.program == "kube-apiserver" {
		// APIs that are off by default beside their gates: ClusterTrustBundles, PodCertificateRequests.
		c.args = append(c.args, "--runtime-config=certificates.k8s.io/v1beta1=true")
	}
	return c
}

// etcd keeps its data without fsync: a test cluster's data is worth less than the
// time of its disk.
func (cp *ControlPlane) etcd() component {
	first := cp.endpoints[0]
	client := etcdURL(first.V4)
	return component{
		name: "etcd", program: "etcd", endpoint: first.Name, health: client + "/health",
		args: []string{
			"--name=cp-0",
			"--data-dir=" + filepath.Join(cp.dir, "etcd"),
			"--listen-client-urls=https://127.0.0.1:2379," + client,
			"--advertise-client-urls=" + client,
			"--listen-peer-urls=http://127.0.0.1:2380",
			"--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster=cp-0=http://127.0.0.1:2380",
			"--cert-file=" + cp.pki.Cert("etcd-server"),
			"--key-file=" + cp.pki.Key("etcd-server"),
			"--trusted-ca-file=" + cp.pki.Cert("etcd-ca"),
			"--client-cert-auth=true",
			"--unsafe-no-fsync=true",
			"--quota-backend-bytes=4294967296",
			"--auto-compaction-mode=periodic",
			"--auto-compaction-retention=30m",
		},
	}
}

func (cp *ControlPlane) apiserver(i int) component {
	endpoint := cp.endpoints[i]
	return component{
		name: apiserverName(i), program: "kube-apiserver", endpoint: endpoint.Name, health: url(endpoint.V4) + "/readyz",
		args: []string{
			"--bind-address=::",
			"--advertise-address=" + endpoint.V4.String(),
			fmt.Sprintf("--secure-port=%d", Port),
			"--etcd-servers=" + etcdURL(cp.endpoints[0].V4),
			"--etcd-cafile=" + cp.pki.Cert("etcd-ca"),
			"--etcd-certfile=" + cp.pki.Cert("etcd-client"),
			"--etcd-keyfile=" + cp.pki.Key("etcd-client"),
			// Upstream's test of continue tokens waits for 10 minutes at most, and a token
			// lives for up to two intervals: with the usual 5 minutes that is a race.
			"--etcd-compaction-interval=2m",
			"--tls-cert-file=" + cp.pki.Cert("apiserver"),
			"--tls-private-key-file=" + cp.pki.Key("apiserver"),
			"--client-ca-file=" + cp.pki.Cert("ca"),
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + cp.pki.Public("service-account"),
			"--service-account-signing-key-file=" + cp.pki.Key("service-account"),
			"--kubelet-certificate-authority=" + cp.pki.Cert("ca"),
			"--kubelet-client-certificate=" + cp.pki.Cert("apiserver-kubelet-client"),
			"--kubelet-client-key=" + cp.pki.Key("apiserver-kubelet-client"),
			"--kubelet-preferred-address-types=InternalIP,Hostname",
			"--requestheader-client-ca-file=" + cp.pki.Cert("front-proxy-ca"),
			"--requestheader-allowed-names=front-proxy-client",
			"--requestheader-username-headers=X-Remote-User",
			"--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--proxy-client-cert-file=" + cp.pki.Cert("front-proxy-client"),
			"--proxy-client-key-file=" + cp.pki.Key("front-proxy-client"),
			"--enable-aggregator-routing=true",
			"--authorization-mode=Node,RBAC",
			"--enable-admission-plugins=NodeRestriction",
			"--enable-bootstrap-token-auth=true",
			"--service-cluster-ip-range=" + ServiceCIDRs,
			"--allow-privileged=true",
			"--profiling=false",
		},
	}
}

func (cp *ControlPlane) controllerManager() component {
	args := append(cp.internalFlags("kube-controller-manager"),
		"--controllers=*,bootstrapsigner,tokencleaner",
		"--root-ca-file="+cp.pki.Cert("ca"),
		"--service-account-private-key-file="+cp.pki.Key("service-account"),
		"--use-service-account-credentials=true",
		"--cluster-signing-cert-file="+cp.pki.Cert("ca"),
		"--cluster-signing-key-file="+cp.pki.Key("ca"),
		"--allocate-node-cidrs=true",
		"--cluster-cidr="+PodCIDRs,
		"--node-cidr-mask-size-ipv4=24",
		"--node-cidr-mask-size-ipv6=64",
		"--service-cluster-ip-range="+ServiceCIDRs,
		"--requestheader-client-ca-file="+cp.pki.Cert("front-proxy-ca"),
	)
	if cp.opts.SigningDuration > 0 {
		args = append(args, "--cluster-signing-duration="+cp.opts.SigningDuration.String())
	}
	return cp.internal("kube-controller-manager", 10257, args)
}

func (cp *ControlPlane) scheduler() component {
	return cp.internal("kube-scheduler", 10259, cp.internalFlags("kube-scheduler"))
}

// internal is a component that talks to the API server and serves only its health.
func (cp *ControlPlane) internal(name string, port uint16, args []string) component {
	health := netip.AddrPortFrom(cp.endpoints[0].V4, port).String()
	return component{
		name: name, program: name, endpoint: cp.endpoints[0].Name,
		health: "https://" + health + "/healthz", args: args,
	}
}

func (cp *ControlPlane) internalFlags(name string) []string {
	kubeconfig := cp.kubeconfig(name)
	return []string{
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--tls-cert-file=" + cp.pki.Cert("apiserver"),
		"--tls-private-key-file=" + cp.pki.Key("apiserver"),
		"--leader-elect=false",
		"--profiling=false",
	}
}

func etcdURL(addr netip.Addr) string {
	return "https://" + netip.AddrPortFrom(addr, 2379).String()
}

// String is the command line, for messages.
func (c component) String() string { return c.program + " " + strings.Join(c.args, " ") }
