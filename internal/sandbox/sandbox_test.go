//go:build linux

package sandbox

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/paths"
)

func TestSandboxIsMadeOnceAndRemoved(t *testing.T) {
	needMounts(t)
	layout := paths.Layout{Run: t.TempDir()}
	m := New(layout)
	if err := m.Remove(t.Context(), "u1"); err != nil {
		t.Fatalf("Remove without Ensure: %v", err)
	}
	first, err := m.Ensure(t.Context(), "u1", Options{ShmSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Remove(t.Context(), "u1") })
	before := inode(t, first.IPC)
	if own := inode(t, "/proc/self/ns/ipc"); own == before {
		t.Error("the pod's IPC namespace is our own")
	}
	if err := os.WriteFile(filepath.Join(first.Shm, "x"), make([]byte, 2<<20), 0o600); err == nil {
		t.Error("2 MiB fit into a /dev/shm of 1 MiB")
	}
	if err := os.WriteFile(filepath.Join(first.Shm, "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Ensure(t.Context(), "u1", Options{ShmSize: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if inode(t, first.IPC) != before {
		t.Error("the second Ensure made another namespace")
	}
	if _, err := os.Stat(filepath.Join(first.Shm, "kept")); err != nil {
		t.Errorf("the second Ensure made another /dev/shm: %v", err)
	}
	for range 2 {
		if err := m.Remove(t.Context(), "u1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(first.Shm); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", first.Shm, err)
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func needMounts(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("VK_METAL_REQUIRE") == "all" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}
