package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/mounts"
)

// HostImage is the reference that runs the host's own root file system (docs/host-images.md).
// The registry name is reserved: nothing is ever pulled from it.
const HostImage = hostImageRegistry + "/host:latest"

const hostImageRegistry = "vk-metal.local"

// HostImagesKey is the setting of the node's configuration that allows host images.
const HostImagesKey = "hostImages.enabled"

const hostRootsKey = "hostImages.roots"

// dissectTime bounds one run of systemd-dissect, which reads a disk image's partition table.
const dissectTime = time.Minute

// HostRoot is a directory or a disk image of the host that runs as the host image
// vk-metal.local/<Name>:latest.
type HostRoot struct {
	Name string
	// Path is a directory, or a file: a file system, or a disk image as the Discoverable
	// Partitions Specification has it.
	Path string
	// Verity is what a disk image must have at least: "" nothing, "hashed" a verity hash tree,
	// "signed" one whose root hash is signed by a key that the kernel knows.
	Verity string
}

func isHostImage(ref imageRef) bool { return ref.registry() == hostImageRegistry }

func hostImage(ref, dir string) Image {
	return Image{
		Ref: ref, Digest: ref, ID: ref, Host: true, HostPath: dir,
		Config: Config{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
	}
}

// hostImage answers for every reference of the reserved registry, whatever the pull policy.
func (e *ensuring) hostImage(ctx context.Context) (Image, error) {
	img, err := e.m.hostImage(ctx, e.ref.canonical())
	if err != nil {
		return e.fail(eventFailed, reasonPullFailed, err)
	}
	e.event(corev1.EventTypeNormal, eventPulled, fmt.Sprintf("Container image %q already present on machine", e.req.Ref))
	img.Ref = e.req.Ref
	return img, nil
}

// hostImage finds the directory of a host image, and mounts a disk image first.
func (m *Manager) hostImage(ctx context.Context, ref string) (Image, error) {
	if !m.opts.HostImages {
		return Image{}, fmt.Errorf("host image %q is not allowed on this node: set %s to true in its configuration", ref, HostImagesKey)
	}
	if ref == HostImage {
		return hostImage(ref, "/"), nil
	}
	for _, root := range m.opts.HostRoots {
		if ref != hostImageRegistry+"/"+root.Name+":latest" {
			continue
		}
		dir, err := m.openHostRoot(ctx, root)
		if err != nil {
			return Image{}, fmt.Errorf("host image %q (%s): %w", ref, hostRootsKey, err)
		}
		return hostImage(ref, dir), nil
	}
	return Image{}, fmt.Errorf("host image %q does not exist: this node has %s", ref, m.hostImages())
}

// hostImages names all host images of the node.
func (m *Manager) hostImages() string {
	names := []string{HostImage}
	for _, root := range m.opts.HostRoots {
		names = append(names, hostImageRegistry+"/"+root.Name+":latest")
	}
	return strings.Join(names, ", ")
}

func (m *Manager) openHostRoot(ctx context.Context, root HostRoot) (string, error) {
	path, err := filepath.EvalSymlinks(root.Path)
	if err != nil {
		return "", err
	}
	for _, private := range m.opts.Private {
		if within(path, private) || within(private, path) {
			return "", fmt.Errorf("%s must neither hold %s nor lie in it: that is the node's own", path, private)
		}
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return "", err
	case info.Mode().IsRegular():
		return m.mountDisk(ctx, root, path, info)
	case !info.IsDir():
		return "", fmt.Errorf("%s is neither a directory nor a disk image", path)
	case root.Verity != "":
		return "", fmt.Errorf("%s is a directory: verity is for disk images", path)
	}
	return path, nil
}

// within says whether path is dir or lies below it; both are absolute and clean.
func within(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// mountDisk mounts a disk image once, read-only, for all containers: they copy the mount,
// so it can be replaced under them when the file is.
func (m *Manager) mountDisk(ctx context.Context, root HostRoot, path string, info os.FileInfo) (string, error) {
	if m.opts.HostMounts == "" {
		return "", errors.New("disk images cannot be used here")
	}
	m.disks.Lock()
	defer m.disks.Unlock()
	dir := filepath.Join(m.opts.HostMounts, root.Name+"."+fileVersion(info))
	if mounted, err := mounts.IsMountPoint(dir); err != nil || mounted {
		return dir, err
	}
	if err := m.checkVerity(ctx, root.Verity, path); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if _, err := dissect(ctx, "--read-only", "--discard=disabled", "--mount", path, dir); err != nil {
		return "", err
	}
	// Containers have slaves of these mounts: what is unmounted here stays theirs.
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return "", fmt.Errorf("make %s private: %w", dir, err)
	}
	return dir, m.dropOldMounts(root.Name, dir)
}

// fileVersion differs for a file that was replaced or rewritten.
func fileVersion(info os.FileInfo) string {
	h := fnv.New64a()
	var inode uint64
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		inode = st.Ino
	}
	fmt.Fprintln(h, inode, info.Size(), info.ModTime().UnixNano())
	return fmt.Sprintf("%016x", h.Sum64())
}

// dropOldMounts unmounts older versions of a disk image. Containers that run from them keep
// them alive.
func (m *Manager) dropOldMounts(name, current string) error {
	dirs, err := filepath.Glob(filepath.Join(m.opts.HostMounts, name+".????????????????"))
	for _, dir := range dirs {
		if dir == current {
			continue
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
		if err := os.Remove(dir); err != nil {
			return err
		}
	}
	return err
}

// checkVerity compares what a disk image has with what is demanded of it.
func (m *Manager) checkVerity(ctx context.Context, want, path string) error {
	if want == "" {
		return nil
	}
	out, err := dissect(ctx, "--json=short", path)
	if err != nil {
		return err
	}
	var image struct {
		Mounts []struct{ Designator, Verity string }
	}
	if err := json.Unmarshal(out, &image); err != nil {
		return fmt.Errorf("read what systemd-dissect says of %s: %w", path, err)
	}
	for _, mount := range image.Mounts {
		if mount.Designator != "root" && mount.Designator != "usr" {
			continue
		}
		if !verified(mount.Verity, want) {
			return fmt.Errorf("%s is not what verity: %s asks for: its partition %s has verity %q", path, want, mount.Designator, mount.Verity)
		}
	}
	return nil
}

// verified compares systemd-dissect's word with ours.
func verified(is, want string) bool {
	return is == "signed" || want == "hashed" && (is == "yes" || is == "external")
}

// dissect runs systemd-dissect(1), which knows partitions, verity and signatures.
func dissect(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, dissectTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemd-dissect", args...).Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, errors.New("disk images need systemd-dissect: install the package systemd-container")
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, fmt.Errorf("run systemd-dissect: %w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	return out, err
}
