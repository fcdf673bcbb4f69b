package bootstrap

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"k8s.io/client-go/util/certificate"
)

// Pair names in the PKI directory: <pair>-current.pem links to the newest.
const (
	clientPair  = "vk-metal-client"
	servingPair = "vk-metal-serving"
)

// store is a certificate.FileStore that also holds the newest pair in memory, so that it
// is used from the moment it is on disk.
type store struct {
	certificate.FileStore
	current  atomic.Pointer[tls.Certificate]
	onUpdate atomic.Pointer[func()]
}

func newStore(dir, pair string) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make certificate store: %w", err)
	}
	files, err := certificate.NewFileStore(pair, dir, dir, "", "")
	if err != nil {
		return nil, fmt.Errorf("open certificate store %s: %w", dir, err)
	}
	s := &store{FileStore: files}
	if cert, err := files.Current(); err == nil {
		s.current.Store(cert)
	}
	return s, nil
}

// Update implements certificate.Store.
func (s *store) Update(certPEM, keyPEM []byte) (*tls.Certificate, error) {
	cert, err := s.FileStore.Update(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	s.current.Store(cert)
	if f := s.onUpdate.Load(); f != nil {
		(*f)()
	}
	return cert, nil
}

// expires is when the newest certificate ends; zero while there is none.
func (s *store) expires() time.Time {
	if cert := s.current.Load(); cert != nil && cert.Leaf != nil {
		return cert.Leaf.NotAfter
	}
	return time.Time{}
}

// valid returns the newest certificate unless it has expired.
func (s *store) valid() *tls.Certificate {
	cert := s.current.Load()
	if cert == nil || cert.Leaf == nil || time.Now().After(cert.Leaf.NotAfter) {
		return nil
	}
	return cert
}

// forget drops the current pair, so that a new one is asked for.
func forget(dir, pair string) error {
	err := os.Remove(filepath.Join(dir, pair+"-current.pem"))
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("drop old certificate: %w", err)
	}
	return nil
}
