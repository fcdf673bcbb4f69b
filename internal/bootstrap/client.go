package bootstrap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	certificates "k8s.io/api/certificates/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/certificate"

	"github.com/vk-metal/vk-metal/internal/apiclient"
)

// IdentityOptions say whose client certificate is kept where.
type IdentityOptions struct {
	NodeName string
	Servers  []string
	// CA verifies the API servers.
	CA *x509.CertPool
	// Dir is the certificate store.
	Dir string
	// BootstrapKubeconfig has the token for the first certificate; the file may be missing
	// once there is one.
	BootstrapKubeconfig string
	Log                 *slog.Logger
}

// Identity is the node's client certificate, kept fresh through the CSR API
// (signer kubernetes.io/kube-apiserver-client-kubelet), and the client that uses it.
type Identity struct {
	o       IdentityOptions
	store   *store
	client  *apiclient.Client
	manager certificate.Manager
	got     chan struct{}
	once    sync.Once
}

// ErrNoCredentials says that there is neither a valid certificate nor a token to get one.
var ErrNoCredentials = errors.New("no valid client certificate and no bootstrap token: run vk-metal join with a new token")

// NewIdentity opens the certificate store. Nothing is asked of the API server before Run.
func NewIdentity(o IdentityOptions) (*Identity, error) {
	s, err := newStore(o.Dir, clientPair)
	if err != nil {
		return nil, err
	}
	id := &Identity{o: o, store: s, got: make(chan struct{})}
	id.client, err = apiclient.New(apiclient.Options{Servers: o.Servers, CA: o.CA, Certificate: s.valid, Log: o.Log})
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(o.BootstrapKubeconfig); err != nil && s.valid() == nil {
		return nil, ErrNoCredentials
	}
	id.manager, err = certificate.NewManager(&certificate.Config{
		ClientsetFn: id.clientset,
		Template: &x509.CertificateRequest{Subject: pkix.Name{
			CommonName: "system:node:" + o.NodeName, Organization: []string{"system:nodes"},
		}},
		SignerName:       certificates.KubeAPIServerClientKubeletSignerName,
		GetUsages:        certificate.DefaultKubeletClientGetUsages,
		CertificateStore: s,
	})
	if err != nil {
		return nil, fmt.Errorf("manage client certificate: %w", err)
	}
	updated := id.updated
	s.onUpdate.Store(&updated)
	if s.valid() != nil {
		id.once.Do(func() { close(id.got) })
	}
	return id, nil
}

// Client speaks to the API servers as the node; requests fail until Got is closed.
func (id *Identity) Client() *apiclient.Client { return id.client }

// Got is closed once there is a certificate.
func (id *Identity) Got() <-chan struct{} { return id.got }

// Expires is when the certificate ends; zero while there is none.
func (id *Identity) Expires() time.Time { return id.store.expires() }

// Run asks for the first certificate if need be and for each next one at 70-90 % of the
// life of the one before, until ctx ends.
func (id *Identity) Run(ctx context.Context) error {
	id.manager.Start()
	<-ctx.Done()
	id.manager.Stop()
	return nil
}

// updated follows a new certificate: connections made with the old one end.
func (id *Identity) updated() {
	id.o.Log.Info("new client certificate", "expires", id.store.valid().Leaf.NotAfter)
	id.once.Do(func() { close(id.got) })
	// The request that fetched the certificate is answered; others repeat themselves.
	go id.client.CloseConnections()
}

// clientset asks with the certificate while there is a valid one, else with the token.
func (id *Identity) clientset(current *tls.Certificate) (kubernetes.Interface, error) {
	if current != nil {
		return kubernetes.NewForConfig(id.client.RESTConfig())
	}
	client, err := apiclient.FromKubeconfig(id.o.BootstrapKubeconfig, id.o.Servers, id.o.Log)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrNoCredentials, err)
	}
	return kubernetes.NewForConfig(client.RESTConfig())
}

// renderBootstrap is the kubeconfig that carries a bootstrap token.
func renderBootstrap(server string, ca []byte, token Token) ([]byte, error) {
	config := clientcmdapi.NewConfig()
	config.Clusters["cluster"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: ca}
	config.AuthInfos["bootstrap"] = &clientcmdapi.AuthInfo{Token: token.String()}
	config.Contexts["bootstrap"] = &clientcmdapi.Context{Cluster: "cluster", AuthInfo: "bootstrap"}
	config.CurrentContext = "bootstrap"
	data, err := clientcmd.Write(*config)
	if err != nil {
		return nil, fmt.Errorf("render bootstrap kubeconfig: %w", err)
	}
	return data, nil
}
