//go:build linux

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func itoa(n int) string { return strconv.Itoa(n) }

// TestBinary builds the launcher as the packages do: it must be static and small, because
// it is started for every container, inside the container's memory limit.
func TestBinary(t *testing.T) {
	const maxSize = 3 << 20
	file := filepath.Join(t.TempDir(), "vk-metal-launch")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > maxSize {
		t.Errorf("it is %d bytes, more than %d", info.Size(), maxSize)
	}
}

// TestImports: the launcher runs as root between systemd and the workload. Everything
// that it links must be small and known.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]string{
		"github.com/vk-metal/vk-metal/cmd/vk-metal-launch": "itself",
		"github.com/vk-metal/vk-metal/internal/launchspec": "the contract; standard library only",
		"github.com/vk-metal/vk-metal/internal/paths":      "what to hide from host images; joins strings",
		"golang.org/x/sys/unix":                            "system calls",
	}
	for _, path := range strings.Fields(string(out)) {
		if allowed[path] == "" {
			t.Errorf("imports %s", path)
		}
	}
	all, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range strings.Fields(string(all)) {
		switch path {
		case "net", "os/user", "text/template":
			t.Errorf("imports %s: large, and it reads the host's configuration", path)
		}
	}
}
