package images

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	corev1 "k8s.io/api/core/v1"
)

func zst(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(data, nil)
}

func ensure(t *testing.T, m *Manager, ref string, secrets ...corev1.Secret) (Image, error) {
	t.Helper()
	return m.Ensure(t.Context(), PullRequest{Ref: ref, Policy: corev1.PullIfNotPresent, Secrets: secrets})
}

func mustEnsure(t *testing.T, m *Manager, ref string, secrets ...corev1.Secret) Image {
	t.Helper()
	img, err := ensure(t, m, ref, secrets...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func wantBody(t *testing.T, img Image, path, body string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(img.Layers[0], path))
	if err != nil || string(data) != body {
		t.Errorf("%s: %q %v, want %q", path, data, err, body)
	}
}

func simple(t *testing.T, body string) testImage {
	t.Helper()
	return buildImage(t, ocispec.ImageConfig{}, gz, tarOf(t, file("f", body)))
}

func TestCompressions(t *testing.T) {
	reg := newRegistry(t, nil)
	m := testManager(t, nil)
	for name, pack := range map[string]func(testing.TB, []byte) []byte{"gzip": gz, "zstd": zst, "plain": nil} {
		reg.push(t, name, "v1", buildImage(t, ocispec.ImageConfig{}, pack, tarOf(t, file("f", name))))
		wantBody(t, mustEnsure(t, m, reg.host+"/"+name+":v1"), "f", name)
	}
}

func TestIndexes(t *testing.T) {
	reg := newRegistry(t, nil)
	m := testManager(t, func(o *Options) { o.Platform = ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"} })
	index := func(mediaType string, platforms map[string]string) testImage {
		idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mediaType}
		out := testImage{mediaType: mediaType, blobs: map[digest.Digest][]byte{}}
		for _, p := range []string{"linux/amd64/", "linux/arm64/", "linux/arm64/v8", "linux/arm64/v9", "unknown/unknown/"} {
			body, ok := platforms[p]
			if !ok {
				continue
			}
			img := simple(t, body)
			d := reg.push(t, "multi", "p"+body, img)
			part := strings.Split(p, "/")
			idx.Manifests = append(idx.Manifests, ocispec.Descriptor{
				MediaType: img.mediaType, Digest: d, Size: int64(len(img.manifest)),
				Platform: &ocispec.Platform{OS: part[0], Architecture: part[1], Variant: part[2]},
			})
		}
		out.manifest = mustJSON(t, idx)
		return out
	}
	d := reg.push(t, "multi", "oci", index(ocispec.MediaTypeImageIndex, map[string]string{"linux/amd64/": "amd", "linux/arm64/": "arm", "linux/arm64/v8": "arm8", "unknown/unknown/": "none"}))
	img := mustEnsure(t, m, reg.host+"/multi:oci")
	wantBody(t, img, "f", "arm8")
	if !strings.HasSuffix(img.Digest, d.String()) {
		t.Errorf("digest %s, want the index's %s", img.Digest, d)
	}
	byDigest := mustEnsure(t, m, reg.host+"/multi@"+d.String())
	if byDigest.ID != img.ID {
		t.Errorf("by digest: %s, by tag %s", byDigest.ID, img.ID)
	}
	reg.push(t, "multi", "docker", index(dockerManifestList, map[string]string{"linux/amd64/": "amd", "linux/arm64/v9": "arm9"}))
	wantBody(t, mustEnsure(t, m, reg.host+"/multi:docker"), "f", "arm9")
	reg.push(t, "multi", "other", index(dockerManifestList, map[string]string{"linux/amd64/": "amd"}))
	_, err := ensure(t, m, reg.host+"/multi:other")
	wantReason(t, err, "ErrImagePull")
	if !strings.Contains(err.Error(), "no match for platform in manifest: want linux/arm64/v8, have linux/amd64") {
		t.Errorf("error %q", err)
	}
}

// basicAuth asks for one user, directly or by token.
func basicAuth(user, password string) func(http.Handler) http.Handler {
	return func(inner http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if u, p, _ := r.BasicAuth(); u != user || p != password {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			inner.ServeHTTP(w, r)
		})
	}
}

func tokenAuth(user, password string) func(http.Handler) http.Handler {
	return func(inner http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				if u, p, _ := r.BasicAuth(); u != user || p != password || !strings.Contains(r.URL.Query().Get("scope"), ":pull") {
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				_ = json.NewEncoder(w).Encode(map[string]string{"token": "t0k"})
				return
			}
			if r.Header.Get("Authorization") != "Bearer t0k" {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, r.Host))
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			inner.ServeHTTP(w, r)
		})
	}
}

func pullSecret(location, user, password string) corev1.Secret {
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	return corev1.Secret{
		Type: corev1.SecretTypeDockerConfigJson,
		Data: map[string][]byte{corev1.DockerConfigJsonKey: fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, location, auth)},
	}
}

func TestPrivateRegistries(t *testing.T) {
	for name, wrap := range map[string]func(string, string) func(http.Handler) http.Handler{"basic": basicAuth, "token": tokenAuth} {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(t, wrap("ann", "s3cret"))
			m := testManager(t, func(o *Options) { o.BackOff = 1 })
			reg.push(t, "private/app", "v1", simple(t, "x"))
			ref := reg.host + "/private/app:v1"
			wrong, right := pullSecret(reg.host, "ann", "no"), pullSecret(reg.host+"/private", "ann", "s3cret")
			_, err := ensure(t, m, ref)
			wantReason(t, err, "ErrImagePull")
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("error shows the password: %v", err)
			}
			mustEnsure(t, m, ref, wrong, right) // tried in order
			// The image is here, but only for those who may have it.
			_, err = ensure(t, m, ref)
			wantReason(t, err, "ErrImagePull")
			_, err = m.Ensure(t.Context(), PullRequest{Ref: ref, Policy: corev1.PullNever})
			wantReason(t, err, "ErrImageNeverPull")
			before := reg.requests("")
			mustEnsure(t, m, ref, right)
			if n := reg.requests(""); n != before {
				t.Errorf("%d requests for a credential that is known to work", n-before)
			}
			for _, secretFile := range []string{"index", "ingest", "layers"} {
				if grep(t, m.path(secretFile), "s3cret") {
					t.Errorf("password in %s", secretFile)
				}
			}
		})
	}
}

func grep(t *testing.T, dir, text string) bool {
	t.Helper()
	found := false
	_ = filepath.WalkDir(dir, func(p string, _ os.DirEntry, _ error) error {
		data, _ := os.ReadFile(p)
		found = found || strings.Contains(string(data), text)
		return nil
	})
	return found
}

func hostsToml(t *testing.T, registry, body string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, registry), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, registry, "hosts.toml"), []byte(body), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestMirrors(t *testing.T) {
	var query, header atomic.Value
	reg := newRegistry(t, func(inner http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/manifests/") {
				query.Store(r.URL.RawQuery)
				header.Store(r.Header.Get("X-Site"))
			}
			inner.ServeHTTP(w, r)
		})
	})
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	reg.push(t, "library/busybox", "latest", simple(t, "bb"))
	dir := hostsToml(t, "docker.io", fmt.Sprintf(`
server = "http://127.0.0.1:1"
[host."%s"]
  capabilities = ["pull", "resolve"]
[host."http://%s"]
  capabilities = ["pull", "resolve"]
  [host."http://%s".header]
    X-Site = ["rack1"]
`, down.URL, reg.host, reg.host))
	m := testManager(t, func(o *Options) { o.HostsDir = dir })
	img := mustEnsure(t, m, "busybox")
	wantBody(t, img, "f", "bb")
	if !strings.HasPrefix(img.Digest, "docker.io/library/busybox@sha256:") {
		t.Errorf("digest %s", img.Digest)
	}
	if query.Load() != "ns=docker.io" || header.Load() != "rack1" {
		t.Errorf("mirror got query %v header %v", query.Load(), header.Load())
	}
}

func TestMirrorOverridePath(t *testing.T) {
	reg := newRegistry(t, func(inner http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasPrefix(r.URL.Path, "/proxy/hub/") {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			r.URL.Path = "/v2" + strings.TrimPrefix(r.URL.Path, "/proxy/hub")
			inner.ServeHTTP(w, r)
		})
	})
	reg.push(t, "library/app", "v1", simple(t, "x"))
	dir := hostsToml(t, "_default", fmt.Sprintf("[host.\"http://%s/proxy/hub\"]\noverride_path = true\n", reg.host))
	m := testManager(t, func(o *Options) { o.HostsDir = dir })
	wantBody(t, mustEnsure(t, m, "app:v1"), "f", "x")
}

// TestCorruptContent changes what the registry sends under a digest.
func TestCorruptContent(t *testing.T) {
	for _, kind := range []string{"/blobs/", "/manifests/sha256:"} {
		t.Run(strings.Trim(kind, "/:"), func(t *testing.T) {
			reg := newRegistry(t, func(inner http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, kind) {
						inner.ServeHTTP(w, r)
						return
					}
					rec := httptest.NewRecorder()
					inner.ServeHTTP(rec, r)
					body := rec.Body.Bytes()
					if len(body) > 10 {
						body[len(body)-10] ^= 1
					}
					w.Header().Set("Content-Type", rec.Header().Get("Content-Type"))
					_, _ = w.Write(body)
				})
			})
			d := reg.push(t, "app", "v1", simple(t, "x"))
			m := testManager(t, nil)
			_, err := ensure(t, m, reg.host+"/app@"+d.String())
			wantReason(t, err, "ErrImagePull")
			if !strings.Contains(err.Error(), "digest") {
				t.Errorf("error %q", err)
			}
			if entries, _ := os.ReadDir(m.path("layers")); len(entries) > 0 {
				t.Errorf("layers %v", entries)
			}
		})
	}
}

// TestResume breaks the connection after some bytes, every time, and still gets the layer.
func TestResume(t *testing.T) {
	var ranges atomic.Int32
	reg := newRegistry(t, func(inner http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
				inner.ServeHTTP(w, r)
				return
			}
			rec := httptest.NewRecorder()
			full := r.Clone(r.Context())
			full.Header.Del("Range")
			inner.ServeHTTP(rec, full)
			body, from := rec.Body.Bytes(), 0
			if h := r.Header.Get("Range"); h != "" {
				ranges.Add(1)
				_, _ = fmt.Sscanf(h, "bytes=%d-", &from)
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(body)-from))
			if from > 0 {
				w.WriteHeader(http.StatusPartialContent)
			}
			_, _ = w.Write(body[from:min(len(body), from+200_000)])
			if from+200_000 < len(body) {
				panic(http.ErrAbortHandler)
			}
		})
	})
	body := strings.Repeat("0123456789", 50_000)
	reg.push(t, "app", "v1", buildImage(t, ocispec.ImageConfig{}, nil, tarOf(t, file("f", body))))
	wantBody(t, mustEnsure(t, testManager(t, nil), reg.host+"/app:v1"), "f", body)
	if ranges.Load() < 2 {
		t.Errorf("resumed %d times", ranges.Load())
	}
}

func TestOnePullForMany(t *testing.T) {
	gate := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Add(1)
	var once sync.Once
	reg := newRegistry(t, func(inner http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") {
				once.Do(waiting.Done)
				<-gate
			}
			inner.ServeHTTP(w, r)
		})
	})
	reg.push(t, "app", "v1", simple(t, "x"))
	m := testManager(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := m.Ensure(ctx, PullRequest{Ref: reg.host + "/app:v1"})
		first <- err
	}()
	waiting.Wait()
	var group sync.WaitGroup
	errs := make([]error, 20)
	for i := range errs {
		group.Go(func() { _, errs[i] = m.Ensure(t.Context(), PullRequest{Ref: reg.host + "/app:v1"}) })
	}
	for joined := 0; joined < 21; {
		m.pulls.mu.Lock()
		joined = 0
		for _, f := range m.pulls.run {
			joined += f.waiters
		}
		m.pulls.mu.Unlock()
	}
	cancel() // the first caller goes away: the others' pull goes on
	if err := <-first; err == nil {
		t.Error("canceled caller got no error")
	}
	close(gate)
	group.Wait()
	for _, err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if n := reg.requests("GET /v2/app/manifests/"); n != 1 {
		t.Errorf("%d manifest requests", n)
	}
}
