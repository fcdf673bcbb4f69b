package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vk-metal/vk-metal/internal/paths"
)

func run(t *testing.T, g *globals, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := newImages(g)
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SilenceUsage = true
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// TestImportAndList goes through the commands as an administrator would.
func TestImportAndList(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("VK_METAL_REQUIRE") == "all" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	dir := t.TempDir()
	g := &globals{configPath: filepath.Join(dir, "config.yaml"), layout: paths.Layout{Lib: dir}}
	conf := "apiVersion: vk-metal.io/v1alpha1\nkind: NodeConfig\napiServers: [https://127.0.0.1:6443]\n"
	if err := os.WriteFile(g.configPath, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "app.tar")
	if err := os.WriteFile(archive, dockerArchive(t), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, g, "import", archive); err != nil || out != "shop/app:1\n" {
		t.Fatalf("import: %q %v", out, err)
	}
	out, err := run(t, g, "list")
	if err != nil || !strings.Contains(out, "docker.io/shop/app:1") {
		t.Errorf("list: %q %v", out, err)
	}
	if out, err := run(t, g, "pull", "Not Valid"); err == nil {
		t.Errorf("pull: %q", out)
	}
}

func dockerArchive(t *testing.T) []byte {
	t.Helper()
	layer := tarFile(t, map[string]string{"etc/motd": "hello"})
	config := fmt.Sprintf(`{"rootfs":{"type":"layers","diff_ids":["sha256:%x"]}}`, sha256.Sum256(layer))
	return tarFile(t, map[string]string{
		"layer.tar": string(layer), "config.json": config,
		"manifest.json": `[{"Config":"config.json","RepoTags":["shop/app:1"],"Layers":["layer.tar"]}]`,
	})
}

func tarFile(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, body := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
