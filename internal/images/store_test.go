package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPrune(t *testing.T) {
	reg := newRegistry(t, nil)
	m := testManager(t, nil)
	base := tarOf(t, file("base", "b"))
	var imgs []Image
	for _, name := range []string{"a", "b", "c"} {
		reg.push(t, name, "v1", buildImage(t, ocispec.ImageConfig{Cmd: []string{name}}, gz, base, tarOf(t, file("f", name))))
		imgs = append(imgs, mustEnsure(t, m, reg.host+"/"+name+":v1"))
	}
	used := func() ([]string, error) { return []string{imgs[1].Digest}, nil }
	// A touch that the cached index does not see must count.
	long := time.Now().Add(-48 * time.Hour)
	records, err := m.Records()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if err := os.Chtimes(m.index.file(r.ID), long, long); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"a", "b", "c"} {
		mustEnsure(t, m, reg.host+"/"+name+":v1")
	}
	got, err := m.Prune(t.Context(), used, PruneOptions{MinAge: time.Hour})
	if err != nil || len(got.Images) > 0 {
		t.Fatalf("pruned young images: %+v %v", got, err)
	}
	release, err := m.HoldStart()
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := m.Prune(short, used, PruneOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Prune during a start: %v", err)
	}
	release()
	if _, err := m.Prune(t.Context(), func() ([]string, error) { return nil, errors.New("no bus") }, PruneOptions{}); err == nil {
		t.Error("Prune without knowing what is in use")
	}
	got, err = m.Prune(t.Context(), used, PruneOptions{})
	if err != nil || !slices.Equal(got.Images, []string{imgs[0].Digest, imgs[2].Digest}) || got.Layers != 2 {
		t.Fatalf("pruned %+v %v", got, err)
	}
	for i, img := range imgs {
		_, ok, err := m.Get(t.Context(), img.Digest)
		if err != nil || ok != (i == 1) {
			t.Errorf("image %d: present %v %v", i, ok, err)
		}
	}
	wantBody(t, imgs[1], "f", "b")
	if entries, _ := os.ReadDir(m.path("layers")); len(entries) != 2 {
		t.Errorf("%d layers left, want base and top", len(entries))
	}
}

// TestDamagedIndex has a record that cannot be read: only that image is gone, until it is pulled.
func TestDamagedIndex(t *testing.T) {
	reg := newRegistry(t, nil)
	m := testManager(t, nil)
	for _, name := range []string{"a", "b"} {
		reg.push(t, name, "v1", simple(t, name))
		mustEnsure(t, m, reg.host+"/"+name+":v1")
	}
	records, err := m.Records()
	if err != nil || len(records) != 2 {
		t.Fatalf("%d records %v", len(records), err)
	}
	if err := writeFileSync(m.index.file(records[0].ID), []byte("{\"id\":")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(m.path("layers", records[1].Layers[0])); err != nil {
		t.Fatal(err)
	}
	again, err := NewManager(m.opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		wantBody(t, mustEnsure(t, again, reg.host+"/"+name+":v1"), "f", name)
	}
}

// TestKilledUnpack kills a process in the middle of unpacking; the next one must find no layer,
// clean up and succeed.
func TestKilledUnpack(t *testing.T) {
	needRoot(t)
	if root := os.Getenv("VK_METAL_TEST_UNPACK"); root != "" {
		m, err := NewManager(Options{Root: root, Limits: Limits{MinFreeBytes: 1}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.Import(t.Context(), os.Stdin, "app:v1")
		t.Fatalf("not killed: %v", err)
	}
	m := testManager(t, nil)
	entries := make([]entry, 0, 6000)
	for i := range 6000 {
		entries = append(entries, file(filepath.Join("d", "f"+time.Duration(i).String()), "x"))
	}
	archive := dockerSave(t, "", tarOf(t, entries...))
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledUnpack$")
	cmd.Env = append(os.Environ(), "VK_METAL_TEST_UNPACK="+m.opts.Root)
	cmd.Stdin = bytes.NewReader(archive)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for !unpackedSome(m.path("tmp")) && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	stopChild(t, cmd)
	if !unpackedSome(m.path("tmp")) {
		_ = cmd.Process.Kill()
		t.Skip("unpacked before it was stopped")
	}
	// While it lives, another process leaves its directory alone.
	if err := m.sweepTemp(); err != nil {
		t.Fatal(err)
	}
	if !unpackedSome(m.path("tmp")) {
		t.Error("a living process's directory was removed")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if entries, _ := os.ReadDir(m.path("layers")); len(entries) > 0 {
		t.Skip("unpacked before it was killed")
	}
	again, err := NewManager(m.opts)
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(m.path("tmp")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := again.Import(t.Context(), bytes.NewReader(archive), "app:v1"); err != nil {
		t.Fatal(err)
	}
	img := mustEnsure(t, again, "app:v1")
	if files, err := os.ReadDir(filepath.Join(img.Layers[0], "d")); err != nil || len(files) != 6000 {
		t.Errorf("%d files %v", len(files), err)
	}
}

// stopChild returns when the process does no more, stopped or at its end.
func stopChild(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	err := error(syscall.EINTR)
	for errors.Is(err, syscall.EINTR) {
		_, err = syscall.Wait4(cmd.Process.Pid, nil, syscall.WUNTRACED, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// unpackedSome says whether a layer is being unpacked right now.
func unpackedSome(tmp string) bool {
	found, _ := filepath.Glob(filepath.Join(tmp, "layer-*", "d"))
	return len(found) > 0
}

// dockerSave makes an archive as `docker save` does.
func dockerSave(t *testing.T, tag string, layers ...[]byte) []byte {
	t.Helper()
	cfg := ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"run"}}}
	var files []entry
	item := map[string]any{"Config": "config.json", "RepoTags": []string{}}
	if tag != "" {
		item["RepoTags"] = []string{tag}
	}
	var names []string
	for i, l := range layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digest.FromBytes(l))
		name := string(rune('a'+i)) + "/layer.tar"
		names = append(names, name)
		files = append(files, file(name, string(l)))
	}
	item["Layers"] = names
	files = append(files, file("config.json", string(mustJSON(t, cfg))), file("manifest.json", string(mustJSON(t, []any{item}))))
	return tarOf(t, files...)
}

func ociLayout(t *testing.T, name string, img testImage) []byte {
	t.Helper()
	d := digest.FromBytes(img.manifest)
	files := []entry{file("oci-layout", `{"imageLayoutVersion":"1.0.0"}`), file("blobs/sha256/"+d.Encoded(), string(img.manifest))}
	for b, data := range img.blobs {
		files = append(files, file("blobs/sha256/"+b.Encoded(), string(data)))
	}
	desc := ocispec.Descriptor{MediaType: img.mediaType, Digest: d, Size: int64(len(img.manifest))}
	if name != "" {
		desc.Annotations = map[string]string{"io.containerd.image.name": name}
	}
	files = append(files, file("index.json", string(mustJSON(t, ocispec.Index{Manifests: []ocispec.Descriptor{desc}}))))
	return tarOf(t, files...)
}

func TestImport(t *testing.T) {
	m := testManager(t, nil)
	layer := tarOf(t, file("f", "x"))
	cases := []struct {
		name, given string
		archive     []byte
		want        string
	}{
		{"docker", "", dockerSave(t, "shop/app:1", layer), "shop/app:1"},
		{"docker without name", "shop/app:2", dockerSave(t, "", layer), "shop/app:2"},
		{"docker, gzip", "", gz(t, dockerSave(t, "shop/app:3", layer)), "shop/app:3"},
		{"oci", "", ociLayout(t, "docker.io/shop/app:4", simple(t, "x")), "docker.io/shop/app:4"},
		{"oci without name, zstd", "example.com/app:5", zst(t, ociLayout(t, "", simple(t, "x"))), "example.com/app:5"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			names, err := m.Import(t.Context(), bytes.NewReader(c.archive), c.given)
			if err != nil || !slices.Equal(names, []string{c.want}) {
				t.Fatalf("names %q %v", names, err)
			}
			wantBody(t, mustEnsure(t, m, c.want), "f", "x")
		})
	}
	bad := map[string][]byte{
		"nothing":      tarOf(t, file("x", "")),
		"no archive":   []byte(strings.Repeat("garbage", 1000)),
		"leaves":       tarOf(t, file("../../x", "")),
		"link out":     tarOf(t, symlink("manifest.json", "/etc/passwd")),
		"config out":   tarOf(t, file("manifest.json", `[{"Config":"../../../../etc/passwd","Layers":[]}]`)),
		"through link": tarOf(t, symlink("d", "/etc"), file("d/x", "")),
		"cut":          dockerSave(t, "a:1", layer)[:700],
	}
	for name, archive := range bad {
		if got, err := m.Import(t.Context(), bytes.NewReader(archive), "bad:1"); err == nil {
			t.Errorf("%s: imported %q", name, got)
		}
	}
	for _, d := range []string{"tmp", "ingest"} {
		if left, _ := os.ReadDir(m.path(d)); len(left) > 0 {
			t.Errorf("%s has %v left", d, left)
		}
	}
}

func TestFailedUnpackLeavesNothing(t *testing.T) {
	reg := newRegistry(t, nil)
	m := testManager(t, nil)
	evil := buildImage(t, ocispec.ImageConfig{}, gz, tarOf(t, file("ok", "x"), file("../up", "x")))
	reg.push(t, "evil", "v1", evil)
	_, err := ensure(t, m, reg.host+"/evil:v1")
	wantReason(t, err, "ErrImagePull")
	for _, d := range []string{"tmp", "ingest", "layers", "index"} {
		if left, _ := os.ReadDir(m.path(d)); len(left) > 0 {
			t.Errorf("%s has %v left", d, left)
		}
	}
}

// TestBomb is a small blob that unpacks to far more than allowed.
func TestBomb(t *testing.T) {
	reg := newRegistry(t, nil)
	m := testManager(t, func(o *Options) { o.Limits.LayerBytes = 10 * mib })
	sparse := entry{Header: tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Mode: 0o644, Size: 64 * mib}, body: string(make([]byte, 64*mib))}
	reg.push(t, "bomb", "v1", buildImage(t, ocispec.ImageConfig{}, gz, tarOf(t, sparse)))
	_, err := ensure(t, m, reg.host+"/bomb:v1")
	wantReason(t, err, "ErrImagePull")
	if !strings.Contains(err.Error(), "more than the limit of 10485760 bytes") {
		t.Errorf("error %q", err)
	}
}
