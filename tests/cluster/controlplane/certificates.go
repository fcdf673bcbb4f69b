package controlplane

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/vk-metal/vk-metal/tests/cluster/pki"
)

// proxyIdentity is for kube-proxy on nodes; RBAC knows its user (system:node-proxier).
const proxyIdentity = "kube-proxy"

// identities have a kubeconfig each: the user and groups that the API server sees.
var identities = []pki.Leaf{
	{Name: "admin", CommonName: "kubernetes-admin", Organization: []string{"system:masters"}},
	{Name: "kube-controller-manager", CommonName: "system:kube-controller-manager"},
	{Name: "kube-scheduler", CommonName: "system:kube-scheduler"},
	{Name: proxyIdentity, CommonName: "system:kube-proxy"},
}

// makeCertificates makes three authorities (cluster, front proxy, etcd) so that
// a certificate of one is worth nothing to the other.
func (cp *ControlPlane) makeCertificates() error {
	var err error
	if cp.ca, err = cp.pki.Authority("ca"); err != nil {
		return err
	}
	leaves := append([]pki.Leaf{
		cp.servingLeaf(),
		{Name: "apiserver-kubelet-client", CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}},
	}, identities...)
	if err := cp.issue(cp.ca, leaves...); err != nil {
		return err
	}
	if err := cp.issueFrom("front-proxy-ca", pki.Leaf{Name: "front-proxy-client", CommonName: "front-proxy-client"}); err != nil {
		return err
	}
	etcd := []pki.Leaf{
		{Name: "etcd-server", CommonName: "etcd", Names: []string{"localhost"}, Addresses: cp.etcdAddresses()},
		{Name: "etcd-client", CommonName: "kube-apiserver-etcd-client"},
	}
	if err := cp.issueFrom("etcd-ca", etcd...); err != nil {
		return err
	}
	return cp.pki.KeyPair("service-account")
}

// NodeCertificate makes a node's client certificate with its key, PEM, as the signer of the
// cluster would, but for any lifetime.
func (cp *ControlPlane) NodeCertificate(node string, lifetime time.Duration) ([]byte, error) {
	dir, err := os.MkdirTemp("", "node-certificate-")
	if err != nil {
		return nil, fmt.Errorf("make a certificate for %s: %w", node, err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	files := pki.Directory(dir)
	leaf := pki.Leaf{Name: "node", CommonName: "system:node:" + node, Organization: []string{"system:nodes"}, Lifetime: lifetime}
	if err := files.Issue(cp.ca, leaf); err != nil {
		return nil, err
	}
	var both []byte
	for _, file := range []string{files.Cert(leaf.Name), files.Key(leaf.Name)} {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("make a certificate for %s: %w", node, err)
		}
		both = append(both, data...)
	}
	return both, nil
}

func (cp *ControlPlane) issueFrom(authority string, leaves ...pki.Leaf) error {
	ca, err := cp.pki.Authority(authority)
	if err != nil {
		return err
	}
	return cp.issue(ca, leaves...)
}

func (cp *ControlPlane) issue(ca *pki.Authority, leaves ...pki.Leaf) error {
	for _, leaf := range leaves {
		if err := cp.pki.Issue(ca, leaf); err != nil {
			return err
		}
	}
	return nil
}

// servingLeaf is one certificate for all API servers and for the components' own
// health ports.
func (cp *ControlPlane) servingLeaf() pki.Leaf {
	leaf := pki.Leaf{Name: "apiserver", CommonName: "kube-apiserver"}
	leaf.Names = []string{
		"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
	}
	leaf.Addresses = append(leaf.Addresses, serviceAddresses...)
	leaf.Addresses = append(leaf.Addresses, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1"))
	for _, endpoint := range cp.endpoints {
		leaf.Addresses = append(leaf.Addresses, endpoint.V4, endpoint.V6)
	}
	return leaf
}

func (cp *ControlPlane) etcdAddresses() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1"), cp.endpoints[0].V4}
}

func (cp *ControlPlane) kubeconfig(identity string) string {
	return filepath.Join(cp.dir, identity+".kubeconfig")
}

// writeKubeconfigs writes one file per identity, with everything inside, so that a
// copy of it works elsewhere.
func (cp *ControlPlane) writeKubeconfigs() error {
	for _, identity := range identities {
		cert, err := os.ReadFile(cp.pki.Cert(identity.Name))
		if err != nil {
			return fmt.Errorf("write kubeconfig of %s: %w", identity.Name, err)
		}
		key, err := os.ReadFile(cp.pki.Key(identity.Name))
		if err != nil {
			return fmt.Errorf("write kubeconfig of %s: %w", identity.Name, err)
		}
		config := clientcmdapi.NewConfig()
		config.Clusters["vk-metal"] = &clientcmdapi.Cluster{Server: cp.URLs()[0], CertificateAuthorityData: cp.ca.PEM()}
		config.AuthInfos[identity.Name] = &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
		config.Contexts["vk-metal"] = &clientcmdapi.Context{Cluster: "vk-metal", AuthInfo: identity.Name}
		config.CurrentContext = "vk-metal"
		if err := clientcmd.WriteToFile(*config, cp.kubeconfig(identity.Name)); err != nil {
			return fmt.Errorf("write kubeconfig of %s: %w", identity.Name, err)
		}
	}
	return nil
}
