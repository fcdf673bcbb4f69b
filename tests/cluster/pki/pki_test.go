package pki

import (
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

func TestIssuedCertificatesVerify(t *testing.T) {
	dir := Directory(filepath.Join(t.TempDir(), "pki"))
	ca, err := dir.Authority("ca")
	if err != nil {
		t.Fatal(err)
	}
	server := Leaf{Name: "apiserver", CommonName: "kube-apiserver", Names: []string{"kubernetes"}, Addresses: []netip.Addr{netip.MustParseAddr("fd00::2")}}
	client := Leaf{Name: "admin", CommonName: "admin", Organization: []string{"system:masters"}}
	for _, leaf := range []Leaf{server, client} {
		if err := dir.Issue(ca, leaf); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.PEM())
	cert := load(t, dir.Cert("apiserver"))
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, DNSName: "fd00::2"}); err != nil {
		t.Errorf("server certificate: %v", err)
	}
	usages := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	if _, err := load(t, dir.Cert("admin")).Verify(x509.VerifyOptions{Roots: pool, KeyUsages: usages}); err == nil {
		t.Error("a client certificate may serve")
	}
}

func TestASecondUpKeepsWhatIsThere(t *testing.T) {
	dir := Directory(t.TempDir())
	read := func() (string, []byte) {
		ca, err := dir.Authority("ca")
		if err != nil {
			t.Fatal(err)
		}
		if err := dir.Issue(ca, Leaf{Name: "admin", CommonName: "admin"}); err != nil {
			t.Fatal(err)
		}
		if err := dir.KeyPair("sa"); err != nil {
			t.Fatal(err)
		}
		key, err := os.ReadFile(dir.Key("sa"))
		if err != nil {
			t.Fatal(err)
		}
		return ca.Hash(), append(load(t, dir.Cert("admin")).Raw, key...)
	}
	hash1, files1 := read()
	hash2, files2 := read()
	if hash1 != hash2 || string(files1) != string(files2) {
		t.Error("a second call made new keys")
	}
}

func load(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
