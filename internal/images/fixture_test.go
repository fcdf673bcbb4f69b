package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// needRoot skips without root, which unpacking needs: owners, devices, trusted attributes.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("VK_METAL_REQUIRE") == "all" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// storeDir is a directory on a file system that overlayfs takes as a lower and upper.
func storeDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vkm-images-") // without the commas of test names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func testManager(t *testing.T, change func(*Options)) *Manager {
	t.Helper()
	needRoot(t)
	opts := Options{Root: storeDir(t), Logger: slog.New(slog.DiscardHandler), Limits: Limits{MinFreeBytes: 1}}
	if change != nil {
		change(&opts)
	}
	m, err := NewManager(opts)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// testRegistry is a real registry over HTTP that remembers what it was asked.
type testRegistry struct {
	host string
	mu   sync.Mutex
	seen []string
}

func newRegistry(t *testing.T, wrap func(http.Handler) http.Handler) *testRegistry {
	t.Helper()
	r := &testRegistry{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	open := httptest.NewServer(inner) // pushes go past the wrapper
	t.Cleanup(open.Close)
	outer := inner
	if wrap != nil {
		outer = wrap(inner)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.seen = append(r.seen, req.Method+" "+req.URL.Path)
		r.mu.Unlock()
		outer.ServeHTTP(w, req)
	}))
	t.Cleanup(s.Close)
	r.host = strings.TrimPrefix(s.URL, "http://")
	pushHosts.Store(r.host, open.URL)
	return r
}

var pushHosts sync.Map

func (r *testRegistry) requests(prefix string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, s := range r.seen {
		if strings.HasPrefix(s, prefix) {
			n++
		}
	}
	return n
}

// entry is one tar entry of a test layer.
type entry struct {
	tar.Header
	body string
}

func dir(name string, mode int64) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}}
}

func file(name, body string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}, body: body}
}

func symlink(name, target string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: target}}
}

func hardlink(name, target string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}}
}

var testTime = time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		hdr := e.Header
		if hdr.ModTime.IsZero() {
			hdr.ModTime = testTime
		}
		hdr.Format = tar.FormatPAX
		if err := w.WriteHeader(&hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gz(t testing.TB, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// testImage is an image as its parts.
type testImage struct {
	blobs     map[digest.Digest][]byte
	manifest  []byte
	mediaType string
}

// buildImage makes an image of tar layers, bottom first; pack compresses them.
func buildImage(t testing.TB, config ocispec.ImageConfig, pack func(testing.TB, []byte) []byte, layers ...[]byte) testImage {
	t.Helper()
	img := testImage{blobs: map[digest.Digest][]byte{}, mediaType: ocispec.MediaTypeImageManifest}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: img.mediaType}
	cfg := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, Config: config}
	cfg.RootFS.Type = "layers"
	for _, l := range layers {
		blob := l
		if pack != nil {
			blob = pack(t, l)
		}
		d := digest.FromBytes(blob)
		img.blobs[d] = blob
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digest.FromBytes(l))
		manifest.Layers = append(manifest.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: d, Size: int64(len(blob))})
	}
	raw := mustJSON(t, cfg)
	d := digest.FromBytes(raw)
	img.blobs[d] = raw
	manifest.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: d, Size: int64(len(raw))}
	img.manifest = mustJSON(t, manifest)
	return img
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// push uploads an image under repo:tag and returns its manifest digest.
func (r *testRegistry) push(t *testing.T, repo, tag string, img testImage) digest.Digest {
	t.Helper()
	for d, blob := range img.blobs {
		r.put(t, http.MethodPost, fmt.Sprintf("/v2/%s/blobs/uploads/?digest=%s", repo, d), "application/octet-stream", blob)
	}
	r.put(t, http.MethodPut, fmt.Sprintf("/v2/%s/manifests/%s", repo, tag), img.mediaType, img.manifest)
	return digest.FromBytes(img.manifest)
}

func (r *testRegistry) put(t *testing.T, method, path, contentType string, body []byte) {
	t.Helper()
	base, _ := pushHosts.Load(r.host)
	req, err := http.NewRequestWithContext(t.Context(), method, base.(string)+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		t.Fatalf("%s %s: %s", method, path, resp.Status)
	}
}

// recorder keeps events as "reason: message".
type recorder struct {
	mu     sync.Mutex
	events []string
}

func (r *recorder) add(e PullEvent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e.Type+" "+e.Reason+" "+e.Message)
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	events := r.events
	r.events = nil
	return events
}
