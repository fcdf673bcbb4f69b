package images

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// FuzzUnpack unpacks arbitrary archives over a lower layer; nothing beside the layer may appear
// or change.
func FuzzUnpack(f *testing.F) {
	if os.Geteuid() != 0 {
		f.Skip("needs root")
	}
	f.Add(tarOf(f, dir("a/", 0o755), symlink("a/l", "../.."), file("a/l/x", "evil"), hardlink("h", "a/l/x")))
	f.Add(tarOf(f, symlink("s", "/outside"), file("s/keep", "evil"), file(".wh.base", ""), file("base/.wh..wh..opq", "")))
	f.Add(tarOf(f, symlink("a", "b"), symlink("b", "a"), dir("a", 0o755), file("a/..", "")))
	f.Add(tarOf(f, hardlink("x", "base/f"), file("x", "evil"), symlink("base", "/outside"), file("base/keep", "x")))
	top, err := os.MkdirTemp("", "vkm-fuzz-")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { os.RemoveAll(top) })
	keep, lower := filepath.Join(top, "outside/keep"), filepath.Join(top, "lower")
	for _, d := range []string{filepath.Dir(keep), filepath.Join(lower, "base")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			f.Fatal(err)
		}
	}
	for p, body := range map[string]string{keep: "keep", filepath.Join(lower, "base/f"): "lower"} {
		if err := os.WriteFile(p, []byte(body), 0o644); err != nil {
			f.Fatal(err)
		}
	}
	if err := os.Symlink("../outside", filepath.Join(lower, "out")); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		layer, err := os.MkdirTemp(top, "layer-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(layer)
		u, err := newUnpacker([]string{layer, lower}, Limits{LayerBytes: mib, LayerEntries: 1000})
		if err != nil {
			t.Fatal(err)
		}
		_ = u.apply(context.Background(), bytes.NewReader(data))
		u.close()
		for p, body := range map[string]string{keep: "keep", filepath.Join(lower, "base/f"): "lower"} {
			if got, err := os.ReadFile(p); err != nil || string(got) != body {
				t.Fatalf("%s: %q %v", p, got, err)
			}
		}
		for d, want := range map[string]int{filepath.Dir(keep): 1, lower: 2, filepath.Join(lower, "base"): 1} {
			if n := countEntries(t, d); n != want {
				t.Fatalf("%s has %d entries, want %d", d, n, want)
			}
		}
	})
}

func countEntries(t *testing.T, d string) int {
	t.Helper()
	entries, err := fs.ReadDir(os.DirFS(d), ".")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
