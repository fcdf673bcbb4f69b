package bootstrap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	certificates "k8s.io/api/certificates/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/certificate"
)

// ServingOptions say for what the node's API certificate is made.
type ServingOptions struct {
	NodeName string
	// Names returns the DNS names and addresses to be certified; they may change, and
	// nothing is asked for while both are empty.
	Names  func() ([]string, []netip.Addr)
	Dir    string
	Client kubernetes.Interface
	Log    *slog.Logger
}

// Serving is the certificate of the node's API, from the CSR API (signer
// kubernetes.io/kubelet-serving) and self-signed until that is approved.
type Serving struct {
	o       ServingOptions
	store   *store
	manager certificate.Manager

	mu         sync.Mutex
	selfSigned *tls.Certificate
}

// NewServing opens the certificate store. Nothing is asked of the API server before Run.
func NewServing(o ServingOptions) (*Serving, error) {
	st, err := newStore(o.Dir, servingPair)
	if err != nil {
		return nil, err
	}
	s := &Serving{o: o, store: st}
	s.manager, err = certificate.NewManager(&certificate.Config{
		ClientsetFn:      func(*tls.Certificate) (kubernetes.Interface, error) { return o.Client, nil },
		GetTemplate:      s.template,
		SignerName:       certificates.KubeletServingSignerName,
		GetUsages:        certificate.DefaultKubeletServingGetUsages,
		CertificateStore: st,
	})
	if err != nil {
		return nil, fmt.Errorf("manage serving certificate: %w", err)
	}
	updated := func() { o.Log.Info("new serving certificate", "expires", st.valid().Leaf.NotAfter) }
	st.onUpdate.Store(&updated)
	return s, nil
}

// Expires is when the cluster's certificate ends; zero while there is none.
func (s *Serving) Expires() time.Time { return s.store.expires() }

// Run asks for certificates until ctx ends. An unapproved request does not block anything.
func (s *Serving) Run(ctx context.Context) error {
	s.manager.Start()
	<-ctx.Done()
	s.manager.Stop()
	return nil
}

func (s *Serving) template() *x509.CertificateRequest {
	names, addrs := s.o.Names()
	if len(names) == 0 && len(addrs) == 0 {
		return nil
	}
	return &x509.CertificateRequest{
		Subject: pkix.Name{
			CommonName: "system:node:" + s.o.NodeName, Organization: []string{"system:nodes"},
		},
		DNSNames: names, IPAddresses: netIPs(addrs),
	}
}

// Certificate is for tls.Config.GetCertificate: the newest from the cluster, or one of our own.
func (s *Serving) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := s.store.valid(); c != nil {
		return c, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.selfSigned == nil {
		c, err := s.selfSign()
		if err != nil {
			return nil, err
		}
		s.selfSigned = c
	}
	return s.selfSigned, nil
}

func (s *Serving) selfSign() (*tls.Certificate, error) {
	names, addrs := s.o.Names()
	certPEM, keyPEM, err := cert.GenerateSelfSignedCertKey(s.o.NodeName, netIPs(addrs), names)
	if err != nil {
		return nil, fmt.Errorf("self-sign serving certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("self-sign serving certificate: %w", err)
	}
	return &pair, nil
}

func netIPs(addrs []netip.Addr) []net.IP {
	var ips []net.IP
	for _, a := range addrs {
		ips = append(ips, a.AsSlice())
	}
	return ips
}
