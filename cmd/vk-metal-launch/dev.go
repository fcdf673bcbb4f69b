//go:build linux

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// defaultDevices are those of every container (OCI runtime specification, "Default Devices").
var defaultDevices = []launchspec.Device{
	{Path: "/dev/null", Type: "c", Major: 1, Minor: 3, Mode: 0o666},
	{Path: "/dev/zero", Type: "c", Major: 1, Minor: 5, Mode: 0o666},
	{Path: "/dev/full", Type: "c", Major: 1, Minor: 7, Mode: 0o666},
	{Path: "/dev/random", Type: "c", Major: 1, Minor: 8, Mode: 0o666},
	{Path: "/dev/urandom", Type: "c", Major: 1, Minor: 9, Mode: 0o666},
	{Path: "/dev/tty", Type: "c", Major: 5, Minor: 0, Mode: 0o666},
}

// devLinks are the symlinks of every container's /dev.
var devLinks = [][2]string{
	{"/proc/self/fd", "fd"},
	{"/proc/self/fd/0", "stdin"},
	{"/proc/self/fd/1", "stdout"},
	{"/proc/self/fd/2", "stderr"},
	{"/proc/kcore", "core"},
	{"pts/ptmx", "ptmx"},
}

// makeDev fills a tmpfs for /dev while nobody sees it.
func makeDev(spec *launchspec.Spec) (int, error) {
	owner := ""
	if first := firstID(spec); first != 0 {
		owner = fmt.Sprintf(",uid=%d,gid=%d", first, first)
	}
	dev, err := newFS("tmpfs", labelled("mode=755,size=64m"+owner, spec.MountLabel), unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_STRICTATIME)
	if err != nil {
		return -1, err
	}
	if err := fillDev(dev, spec); err != nil {
		unix.Close(dev)
		return -1, err
	}
	return dev, nil
}

func fillDev(dev int, spec *launchspec.Spec) error {
	first := firstID(spec)
	for _, device := range devicesOf(spec) {
		name, ok := inDev(device.Path)
		if !ok {
			continue // placeDevices
		}
		if err := makeDevice(rootDir{fd: dev}, name, device); err != nil {
			return fmt.Errorf("make device %s: %w", device.Path, err)
		}
	}
	for _, link := range devLinks {
		err := unix.Symlinkat(link[0], dev, link[1])
		if err == nil && first != 0 {
			err = unix.Fchownat(dev, link[1], int(first), int(first), unix.AT_SYMLINK_NOFOLLOW)
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make /dev/%s: %w", link[1], err)
		}
	}
	return nil
}

// devicesOf are a container's nodes, earlier ones over later ones of the same name. The host's,
// which a privileged container sees, stay the host's: in a user namespace their owner is nobody,
// and root there may not open them.
func devicesOf(spec *launchspec.Spec) []launchspec.Device {
	first := firstID(spec)
	own := slices.Concat(defaultDevices, spec.Devices)
	for i := range own {
		own[i].UID += first
		own[i].GID += first
	}
	switch {
	case !spec.Privileged:
		return own
	case first != 0:
		return append(own, hostDevices()...)
	}
	return append(hostDevices(), own...)
}

// firstID is the host's ID of the container's root.
func firstID(spec *launchspec.Spec) uint32 {
	if spec.Namespaces.User == nil {
		return 0
	}
	return spec.Namespaces.User.First
}

// mountDev mounts what makeDev made, dev, on /dev.
func mountDev(root *rootDir, dev int, spec *launchspec.Spec) error {
	err := attachReal(*root, dev, "dev")
	if err != nil {
		return err
	}
	if root.null, err = unix.Openat(dev, "null", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open /dev/null: %w", err)
	}
	return mountInDev(*root, spec)
}

func mountInDev(root rootDir, spec *launchspec.Spec) error {
	for _, m := range []struct {
		target, kind, options string
		attrs                 int
	}{
		{"/dev/pts", "devpts", labelled("newinstance,ptmxmode=0666,mode=0620,gid=5", spec.MountLabel), unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC},
		{"/dev/shm", "tmpfs", labelled("mode=1777,size=64m", spec.MountLabel), kernelAttrs},
		{"/dev/mqueue", "mqueue", "", kernelAttrs},
	} {
		if err := mountAt(root, m.target, m.kind, m.options, m.attrs); err != nil {
			return err
		}
	}
	return labelMqueue(root, spec)
}

// inDev is the device's path below /dev, if it is there.
func inDev(name string) (string, bool) { return strings.CutPrefix(path.Clean(name), "/dev/") }

// placeDevices makes the devices that are not below /dev, once everything is mounted.
func placeDevices(root rootDir, spec *launchspec.Spec) error {
	for _, device := range spec.Devices {
		if _, ok := inDev(device.Path); ok {
			continue
		}
		if err := makeDevice(root, path.Clean(device.Path), device); err != nil {
			return fmt.Errorf("make device %s: %w", device.Path, err)
		}
		if err := checkDevice(root, device); err != nil {
			return fmt.Errorf("make device %s: %w", device.Path, err)
		}
	}
	return nil
}

// checkDevice refuses another file of the image or of a volume at the device's place.
func checkDevice(root rootDir, device launchspec.Device) error {
	fd, err := root.open(device.Path, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFBLK && kind != unix.S_IFCHR || st.Rdev != unix.Mkdev(device.Major, device.Minor) {
		return errors.New("another file is there")
	}
	return nil
}

// makeDevice makes a node at name inside dir. What is there already stays.
func makeDevice(dev rootDir, name string, device launchspec.Device) error {
	kind := uint32(unix.S_IFCHR)
	if device.Type == "b" {
		kind = unix.S_IFBLK
	}
	dir, base := path.Split(name)
	parent, err := dev.mkdirAll(dir)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	number := int(unix.Mkdev(device.Major, device.Minor))
	err = unix.Mknodat(parent, base, kind|device.Mode&0o777, number)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return err
	}
	return unix.Fchownat(parent, base, int(device.UID), int(device.GID), unix.AT_SYMLINK_NOFOLLOW)
}

// hostDevices are all nodes of the host's /dev, for privileged containers.
func hostDevices() []launchspec.Device {
	var out []launchspec.Device
	_ = filepath.WalkDir("/dev", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // gone meanwhile: devices come and go
		}
		if entry.IsDir() {
			switch name {
			case "/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/hugepages", "/dev/.lxc", "/dev/.lxd-mounts", "/dev/.udev":
				return filepath.SkipDir
			}
			return nil
		}
		if device, ok := hostDevice(name); ok && name != "/dev/console" && name != "/dev/ptmx" {
			out = append(out, device)
		}
		return nil
	})
	return out
}

func hostDevice(name string) (launchspec.Device, bool) {
	var st unix.Stat_t
	if unix.Lstat(name, &st) != nil {
		return launchspec.Device{}, false
	}
	device := launchspec.Device{
		Path: name, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev),
		Mode: st.Mode & 0o777, UID: st.Uid, GID: st.Gid,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		device.Type = "c"
	case unix.S_IFBLK:
		device.Type = "b"
	default:
		return launchspec.Device{}, false
	}
	return device, true
}
