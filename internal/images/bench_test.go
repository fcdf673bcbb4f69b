package images

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	corev1 "k8s.io/api/core/v1"
)

// BenchmarkEnsurePresent is the cost that every container start pays for its image.
func BenchmarkEnsurePresent(b *testing.B) {
	m, err := NewManager(Options{Root: b.TempDir(), Logger: slog.New(slog.DiscardHandler), Limits: Limits{MinFreeBytes: 1}})
	if err != nil {
		b.Fatal(err)
	}
	layer := tarOf(b, file("f", "x"))
	cfg := ocispec.Image{}
	cfg.RootFS.DiffIDs = []digest.Digest{digest.FromBytes(layer)}
	manifest := `[{"Config":"c","RepoTags":["a:1"],"Layers":["l"]}]`
	raw := mustJSON(b, cfg)
	if _, err := m.Import(b.Context(), bytes.NewReader(tarOf(b, file("c", string(raw)), file("l", string(layer)), file("manifest.json", manifest))), ""); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := m.Ensure(b.Context(), PullRequest{Ref: "a:1", Policy: corev1.PullNever}); err != nil {
			b.Fatal(err)
		}
	}
}
