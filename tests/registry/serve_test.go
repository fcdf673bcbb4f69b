package registry

import (
	"archive/tar"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/vk-metal/vk-metal/tests/cluster/pki"
	"github.com/vk-metal/vk-metal/tests/progress"
)

// server is a registry of its own on loopback with one public and one private image.
type server struct {
	http, https string
	transport   http.RoundTripper
}

func newServer(t *testing.T) server {
	t.Helper()
	one, err := layer("", entry{path: "hello", mode: 0o644, data: []byte("world")})
	if err != nil {
		t.Fatal(err)
	}
	images := []image{
		{names: []string{"docker.io/library/busybox:latest"}, layers: []v1.Layer{one}, config: v1.Config{User: "1234"}},
		{names: []string{Private}, layers: []v1.Layer{one}},
	}
	dir := t.TempDir()
	if err := writeLayout(filepath.Join(dir, "layout"), images, progress.New(nil).Step("test")); err != nil {
		t.Fatal(err)
	}
	certs := pki.Directory(filepath.Join(dir, "pki"))
	ca, err := certs.Authority("ca")
	if err != nil {
		t.Fatal(err)
	}
	if err := certs.Issue(ca, pki.Leaf{Name: "serving", CommonName: Host, Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.PEM())
	s := server{http: freeAddress(t), https: freeAddress(t), transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, ServeConfig{
			Layouts: []string{filepath.Join(dir, "layout")}, Store: filepath.Join(dir, "store"), HTTP: s.http, HTTPS: s.https,
			Cert: certs.Cert("serving"), Key: certs.Key("serving"),
			Users: map[string]string{PrivateUser: PrivatePassword}, Log: slog.New(slog.DiscardHandler),
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	waitListening(t, s.http, s.https)
	return s
}

func TestServe(t *testing.T) {
	s := newServer(t)
	user := &authn.Basic{Username: PrivateUser, Password: PrivatePassword}
	wrong := &authn.Basic{Username: PrivateUser, Password: "wrong"}
	cases := map[string]struct {
		image  string
		auth   authn.Authenticator
		status int // of the refusal; 0 is success
	}{
		"mirror, public":           {s.http + "/library/busybox:latest", authn.Anonymous, 0},
		"mirror, private":          {s.http + "/private/busybox:1", authn.Anonymous, http.StatusForbidden},
		"mirror, missing":          {s.http + "/library/busybox:none", authn.Anonymous, http.StatusNotFound},
		"tokens, public":           {s.https + "/library/busybox:latest", authn.Anonymous, 0},
		"tokens, private":          {s.https + "/private/busybox:1", authn.Anonymous, http.StatusUnauthorized},
		"tokens, private, user":    {s.https + "/private/busybox:1", user, 0},
		"tokens, private, wrong":   {s.https + "/private/busybox:1", wrong, http.StatusUnauthorized},
		"tokens, missing for user": {s.https + "/private/none:1", user, http.StatusNotFound},
	}
	for title, c := range cases {
		t.Run(title, func(t *testing.T) {
			image, err := s.pull(t, c.image, c.auth)
			if c.status == 0 {
				checkContent(t, image, err)
				return
			}
			var refusal *transport.Error
			if !errors.As(err, &refusal) || refusal.StatusCode != c.status {
				t.Errorf("got %v, want status %d", err, c.status)
			}
		})
	}
}

func TestPushNeedsAUser(t *testing.T) {
	s := newServer(t)
	image, err := s.pull(t, s.http+"/library/busybox:latest", authn.Anonymous)
	if err != nil {
		t.Fatal(err)
	}
	target := s.reference(t, s.https+"/new/image:1")
	if err := remote.Write(target, image, remote.WithTransport(s.transport)); err == nil {
		t.Error("anybody may push")
	}
	user := remote.WithAuth(&authn.Basic{Username: PrivateUser, Password: PrivatePassword})
	if err := remote.Write(target, image, remote.WithTransport(s.transport), user); err != nil {
		t.Errorf("push as a user: %v", err)
	}
}

func TestLayerIsReproducible(t *testing.T) {
	digest := func() v1.Hash {
		tree := t.TempDir()
		for _, name := range []string{"b", "a"} {
			if err := os.WriteFile(filepath.Join(tree, name), []byte(name), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		one, err := layer(tree, entry{path: "z", link: "a"}, entry{path: "c", mode: 0o755, data: []byte("c")})
		if err != nil {
			t.Fatal(err)
		}
		hash, err := one.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return hash
	}
	if first, second := digest(), digest(); first != second {
		t.Errorf("%s and %s", first, second)
	}
}

func (s server) reference(t *testing.T, image string) name.Reference {
	t.Helper()
	var options []name.Option
	if len(image) > len(s.http) && image[:len(s.http)] == s.http {
		options = append(options, name.Insecure)
	}
	ref, err := name.ParseReference(image, options...)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func (s server) pull(t *testing.T, image string, auth authn.Authenticator) (v1.Image, error) {
	t.Helper()
	return remote.Image(s.reference(t, image), remote.WithTransport(s.transport), remote.WithAuth(auth))
}

func checkContent(t *testing.T, image v1.Image, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := image.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("layers %v, %v", layers, err)
	}
	stream, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	archive := tar.NewReader(stream)
	header, err := archive.Next()
	if err != nil || header.Name != "hello" {
		t.Fatalf("first file %v, %v", header, err)
	}
	if data, err := io.ReadAll(archive); err != nil || string(data) != "world" {
		t.Errorf("content %q, %v", data, err)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}

func waitListening(t *testing.T, addresses ...string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for _, address := range addresses {
		for {
			conn, err := net.DialTimeout("tcp", address, time.Second)
			if err == nil {
				_ = conn.Close()
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("nobody listens on %s: %v", address, err)
			}
		}
	}
}
