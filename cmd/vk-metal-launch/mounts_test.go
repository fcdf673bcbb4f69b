package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// TestReadOnlyMounts: what is mounted in a read-only volume is read-only only if that is asked for;
// the other options are for all of it.
func TestReadOnlyMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("VK_METAL_REQUIRE") == "all" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Join(dir, "below")} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", path, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	for name, c := range map[string]struct {
		mount        launchspec.Mount
		above, below error
	}{
		"writable":   {launchspec.Mount{NoExec: true}, nil, nil},
		"all":        {launchspec.Mount{Readonly: true, NoExec: true}, unix.EROFS, unix.EROFS},
		"not below":  {launchspec.Mount{Readonly: true, WritableBelow: true, NoExec: true}, unix.EROFS, nil},
		"plain, too": {launchspec.Mount{Readonly: true, WritableBelow: true}, unix.EROFS, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c.mount.Recursive = true
			top, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(top)
			tree, err := cloneTree(top, true)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(tree)
			if err := restrictTree(tree, c.mount); err != nil {
				t.Fatal(err)
			}
			for path, want := range map[string]error{"file": c.above, "below/file": c.below} {
				fd, err := unix.Openat(tree, path, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
				if !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", path, err, want)
				}
				if err == nil {
					unix.Close(fd)
				}
			}
			below, err := unix.Openat(tree, "below", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(below)
			var st unix.Statfs_t
			if err := unix.Fstatfs(below, &st); err != nil || st.Flags&unix.ST_NOEXEC != 0 != c.mount.NoExec {
				t.Errorf("below: flags %x, %v", st.Flags, err)
			}
		})
	}
}
