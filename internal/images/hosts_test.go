package images

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	corev1 "k8s.io/api/core/v1"
)

func TestParseHosts(t *testing.T) {
	toml := `
server = "https://registry.corp:5000"
ca = "corp.pem"
skip_verify = true

[host."https://zeta.example/v2"]
  capabilities = ["pull", "resolve", "push"]
  ca = ["a.pem", "/etc/b.pem"]
  client = [["c.pem", "c.key"], ["both.pem", ""]]
  [host."https://zeta.example/v2".header]
    x-one = "1"

[host."http://alpha.example:8080/cache"]
  capabilities = ["pull"]
  override_path = true
  dial_timeout = "3s"

[host."plain.example"]
`
	eps, err := parseHosts([]byte(toml), "/etc/vk-metal/certs.d/x", "registry.corp:5000")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range eps {
		got = append(got, fmt.Sprintf("%s pull=%v resolve=%v mirror=%v skip=%v ca=%v client=%v dial=%v header=%v",
			e, e.pull, e.resolve, e.mirror, e.skipVerify, e.ca, e.client, e.dialTimeout, e.header))
	}
	want := []string{
		"https://zeta.example/v2 pull=true resolve=true mirror=true skip=false ca=[/etc/vk-metal/certs.d/x/a.pem /etc/b.pem] client=[[/etc/vk-metal/certs.d/x/c.pem /etc/vk-metal/certs.d/x/c.key] [/etc/vk-metal/certs.d/x/both.pem ]] dial=0s header=map[X-One:[1]]",
		"http://alpha.example:8080/cache pull=true resolve=false mirror=true skip=false ca=[] client=[] dial=3s header=map[]",
		"https://plain.example/v2 pull=true resolve=true mirror=true skip=false ca=[] client=[] dial=0s header=map[]",
		"https://registry.corp:5000/v2 pull=true resolve=true mirror=false skip=true ca=[/etc/vk-metal/certs.d/x/corp.pem] client=[] dial=0s header=map[]",
	}
	if !slices.Equal(got, want) {
		t.Errorf("endpoints\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, bad := range []string{
		`server = 3`, `[host."x"]` + "\ncapabilities = [\"fly\"]", `ca = 5`, `client = [[]]`, `client = [["a","b","c"]]`,
		"[header]\nx = 1", "[header]\nx = \"a\\nb\"", `dial_timeout = "soon"`, `server = "https://"`, `[host`,
	} {
		if _, err := parseHosts([]byte(bad), "/d", "r.example"); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

func TestHostDirs(t *testing.T) {
	got := hostDirs("/c", "r.example:5000")
	if want := []string{"/c/r.example_5000_", "/c/r.example:5000", "/c/_default"}; !slices.Equal(got, want) {
		t.Errorf("dirs %q, want %q", got, want)
	}
	for registry, want := range map[string]string{
		"docker.io": "https://registry-1.docker.io/v2", "localhost:5000": "http://localhost:5000/v2",
		"127.0.0.1": "http://127.0.0.1/v2", "[::1]:5000": "http://[::1]:5000/v2", "localhost:443": "https://localhost:443/v2", "r.io": "https://r.io/v2",
	} {
		if got := defaultEndpoint(registry).String(); got != want {
			t.Errorf("default of %s is %s, want %s", registry, got, want)
		}
	}
}

func FuzzParseHosts(f *testing.F) {
	f.Add([]byte("server = \"https://x\"\n[host.\"http://y\"]\nca=\"z\"\n"))
	f.Add([]byte("[host]\n\"http://a\" = {skip_verify = true}\n"))
	f.Add([]byte("client=[[\"a\"]]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		eps, err := parseHosts(data, "/d", "r.example")
		if err != nil {
			return
		}
		if len(eps) == 0 {
			t.Fatal("no endpoint")
		}
		for _, e := range eps {
			if e.scheme != "http" && e.scheme != "https" || e.host == "" || e.path != "" && !strings.HasPrefix(e.path, "/") {
				t.Errorf("endpoint %+v", e)
			}
		}
	})
}

// testCert makes a self-signed certificate for 127.0.0.1 that is its own CA.
func testCert(t *testing.T, dir string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "registry.test"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	for name, data := range map[string][]byte{"cert.pem": certPEM, "key.pem": keyPEM} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return cert, pool
}

// TestPrivateCA asks for a certificate of both sides.
func TestPrivateCA(t *testing.T) {
	certs := t.TempDir()
	cert, pool := testCert(t, certs)
	plain := newRegistry(t, nil)
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewUnstartedServer(inner)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	open := httptest.NewServer(inner)
	t.Cleanup(open.Close)
	pushHosts.Store(plain.host, open.URL)
	plain.push(t, "app", "v1", simple(t, "x"))

	_, port := splitPort(strings.TrimPrefix(s.URL, "https://"))
	server := "https://localhost:" + port
	for name, c := range map[string]struct {
		toml string
		ok   bool
	}{
		"ca and client": {"ca = \"" + certs + "/cert.pem\"\nclient = [[\"" + certs + "/cert.pem\", \"" + certs + "/key.pem\"]]", true},
		"skip_verify":   {"skip_verify = true\nclient = [[\"" + certs + "/cert.pem\", \"" + certs + "/key.pem\"]]", true},
		"no ca":         {"client = [[\"" + certs + "/cert.pem\", \"" + certs + "/key.pem\"]]", false},
		"no client":     {"ca = \"" + certs + "/cert.pem\"", false},
		"missing file":  {"ca = \"/nonexistent.pem\"", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := hostsToml(t, "corp.example", fmt.Sprintf("server = %q\n%s\n", server, c.toml))
			m := testManager(t, func(o *Options) { o.HostsDir = dir })
			_, err := m.Ensure(t.Context(), PullRequest{Ref: "corp.example/app:v1"})
			if (err == nil) != c.ok {
				t.Errorf("error %v, want success %v", err, c.ok)
			}
		})
	}
}

func TestKeyring(t *testing.T) {
	hub := pullSecret("https://index.docker.io/v1/", "hub", "p")
	cases := []struct {
		repo     string
		location string
		match    bool
	}{
		{"r.example/team/app", "r.example", true},
		{"r.example/team/app", "r.example/team", true},
		{"r.example/team/app", "https://r.example/v2/", true},
		{"r.example/team/app", "r.example/other", false},
		{"r.example/team/app", "*.example", true},
		{"a.b.example/app", "*.example", false},
		{"r.example:5000/app", "r.example", false},
		{"r.example:5000/app", "r.example:5000", true},
		{"evil.example/app", "r.example", false},
		{"docker.io/library/busybox", "docker.io", true},
		{"docker.io/library/busybox", "index.docker.io", true},
		{"r.example/app", "index.docker.io", false},
		{"r.example/app", "[", false},
	}
	for _, c := range cases {
		got, _ := credentials([]corev1.Secret{pullSecret(c.location, "u", "p")}, c.repo)
		if (len(got) == 1) != c.match {
			t.Errorf("%s for %s: %d logins, want match %v", c.location, c.repo, len(got), c.match)
		}
	}
	if got, errs := credentials([]corev1.Secret{hub}, "docker.io/library/x"); len(got) != 1 || len(errs) > 0 || got[0].auth.Username != "hub" {
		t.Errorf("hub: %+v %v", got, errs)
	}
	// Most specific first; the old format and plain fields too.
	old := corev1.Secret{Type: corev1.SecretTypeDockercfg, Data: map[string][]byte{corev1.DockerConfigKey: []byte(`{"r.example/team":{"username":"old","password":"p"}}`)}}
	got, _ := credentials([]corev1.Secret{pullSecret("r.example", "wide", "p"), old}, "r.example/team/app")
	if len(got) != 2 || got[0].auth.Username != "old" || got[1].auth.Username != "wide" {
		t.Errorf("order: %+v", got)
	}
	bad := corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{"auths": SECRETBYTES`)}}
	if _, errs := credentials([]corev1.Secret{bad}, "r.example/x"); len(errs) != 1 || strings.Contains(errs[0].Error(), "SECRET") {
		t.Errorf("errors %v", errs)
	}
}
