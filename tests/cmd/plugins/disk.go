package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// disk is the file that is a volume's disk.
func (n *csiNode) disk(volume string) string { return filepath.Join(n.data, volume+".img") }

// attached returns the loop device of a file.
func attached(file string) (string, error) {
	out, err := exec.Command("losetup", "--noheadings", "--output", "NAME", "--associated", file).Output()
	if err != nil {
		return "", fmt.Errorf("find device of %s: %w", file, err)
	}
	device, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if device == "" {
		return "", fmt.Errorf("%s is not attached", file)
	}
	return device, nil
}

// attach makes the file, if need be, and a loop device of it, unless there is one.
func attach(file string) (string, error) {
	if device, err := attached(file); err == nil {
		return device, nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", err
	}
	disk, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", err
	}
	if err := errors.Join(disk.Truncate(4<<20), disk.Close()); err != nil {
		return "", err
	}
	if out, err := exec.Command("losetup", "--find", file).CombinedOutput(); err != nil {
		return "", fmt.Errorf("attach %s: %w: %s", file, err, out)
	}
	return attached(file)
}

// detach undoes attach.
func detach(file string) error {
	device, err := attached(file)
	if err != nil {
		return nil //nolint:nilerr // then there is nothing to undo
	}
	if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
		return fmt.Errorf("detach %s: %w: %s", device, err, out)
	}
	return nil
}

// bindDevice mounts a device over a file of its own, as block volumes are published.
func bindDevice(device, target string) error {
	file, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	if err := file.Close(); err != nil || mounted(target) {
		return err
	}
	return unix.Mount(device, target, "", unix.MS_BIND, "")
}
