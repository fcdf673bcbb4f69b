// Package pki makes the certificates of the rig's control plane. It owns files of
// keys and certificates in one directory; it must not know who uses them.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// lifetime is long enough for any test and for a demo that is left standing.
const lifetime = 365 * 24 * time.Hour

// Directory is a directory of <name>.crt and <name>.key files.
type Directory string

// Authority can sign certificates.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// Leaf says what certificate to make.
type Leaf struct {
	Name         string // of the files
	CommonName   string
	Organization []string
	Names        []string // DNS SANs; with Addresses, the certificate serves
	Addresses    []netip.Addr
	Lifetime     time.Duration // from now on; 0 is a year
}

// Cert is the path of a certificate.
func (d Directory) Cert(name string) string { return filepath.Join(string(d), name+".crt") }

// Key is the path of a private key.
func (d Directory) Key(name string) string { return filepath.Join(string(d), name+".key") }

// Authority loads the authority of that name and makes it first if it is missing.
func (d Directory) Authority(name string) (*Authority, error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, fmt.Errorf("make the PKI directory: %w", err)
	}
	if authority, err := d.load(name); !errors.Is(err, fs.ErrNotExist) {
		return authority, err
	}
	key, err := d.newKey(name)
	if err != nil {
		return nil, err
	}
	template, err := newTemplate(pkix.Name{CommonName: name})
	if err != nil {
		return nil, err
	}
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	if err := d.sign(name, template, template, key.Public(), key); err != nil {
		return nil, err
	}
	return d.load(name)
}

// Issue makes a key and a certificate signed by a, unless the files are there.
func (d Directory) Issue(a *Authority, leaf Leaf) error {
	if _, err := os.Stat(d.Cert(leaf.Name)); err == nil {
		return nil
	}
	key, err := d.newKey(leaf.Name)
	if err != nil {
		return err
	}
	template, err := newTemplate(pkix.Name{CommonName: leaf.CommonName, Organization: leaf.Organization})
	if err != nil {
		return err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(leaf.Names)+len(leaf.Addresses) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	template.DNSNames = leaf.Names
	if leaf.Lifetime > 0 {
		template.NotAfter = time.Now().Add(leaf.Lifetime)
	}
	for _, addr := range leaf.Addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(addr.AsSlice()))
	}
	return d.sign(leaf.Name, template, a.cert, key.Public(), a.key)
}

// KeyPair makes a bare key pair, <name>.key and <name>.pub, unless it is there.
func (d Directory) KeyPair(name string) error {
	if _, err := os.Stat(d.Public(name)); err == nil {
		return nil
	}
	key, err := d.newKey(name)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encode public key %s: %w", name, err)
	}
	return writePEM(d.Public(name), "PUBLIC KEY", der, 0o644)
}

// Public is the path of a bare public key.
func (d Directory) Public(name string) string { return filepath.Join(string(d), name+".pub") }

// Hash is the hash of an authority's public key as `join --ca-hash` takes it.
func (a *Authority) Hash() string {
	sum := sha256.Sum256(a.cert.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// PEM is the authority's certificate.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (d Directory) load(name string) (*Authority, error) {
	cert, err := readPEM(d.Cert(name))
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(cert)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", d.Cert(name), err)
	}
	der, err := readPEM(d.Key(name))
	if err != nil {
		return nil, err
	}
	key, err := x509.ParseECPrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", d.Key(name), err)
	}
	return &Authority{cert: parsed, key: key}, nil
}

func (d Directory) newKey(name string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key %s: %w", name, err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key %s: %w", name, err)
	}
	return key, writePEM(d.Key(name), "EC PRIVATE KEY", der, 0o600)
}

func (d Directory) sign(name string, template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) error {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return fmt.Errorf("sign certificate %s: %w", name, err)
	}
	return writePEM(d.Cert(name), "CERTIFICATE", der, 0o644)
}

func newTemplate(subject pkix.Name) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial, Subject: subject,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(lifetime),
	}, nil
}

func readPEM(file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read PEM: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("read PEM: no block in %s", file)
	}
	return block.Bytes, nil
}

// writePEM writes a whole file or none: a certificate that is there is complete.
func writePEM(file, kind string, der []byte, mode fs.FileMode) error {
	partial := file + ".partial"
	data := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(partial, data, mode); err != nil {
		return fmt.Errorf("write PEM: %w", err)
	}
	if err := os.Rename(partial, file); err != nil {
		return fmt.Errorf("write PEM: %w", err)
	}
	return nil
}
