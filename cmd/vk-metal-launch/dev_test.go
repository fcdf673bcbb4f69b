//go:build linux

package main

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// A volume's device may be anywhere in the container, but not in the place of another file.
func TestDevicesOutsideOfDev(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("VK_METAL_REQUIRE") == "all" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "taken"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	root := rootDir{fd: fd}
	null := launchspec.Device{Path: "/mnt/a/null", Type: "c", Major: 1, Minor: 3, Mode: 0o660, GID: 6}
	inside := launchspec.Device{Path: "/dev/elsewhere", Type: "c", Major: 1, Minor: 3}
	for range 2 { // a device that is there already is as good
		if err := placeDevices(root, &launchspec.Spec{Devices: []launchspec.Device{null, inside}}); err != nil {
			t.Fatal(err)
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "mnt/a/null"), &st); err != nil || st.Rdev != unix.Mkdev(1, 3) || st.Mode != unix.S_IFCHR|0o660&^umask() || st.Gid != 6 {
		t.Errorf("device: %+v %v", st, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "dev")); err == nil {
		t.Error("a device of /dev was made a second time")
	}
	if err := placeDevices(root, &launchspec.Spec{Devices: []launchspec.Device{{Path: "/taken", Type: "c", Major: 1, Minor: 3}}}); err == nil {
		t.Error("a device was taken for made where another file is")
	}
}

func umask() uint32 {
	old := unix.Umask(0)
	unix.Umask(old)
	return uint32(old)
}
