package volumes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/mounts"
)

const dirNFS = "kubernetes.io~nfs"

// inlineNFS mounts an export that the pod itself names.
func (v volume) inlineNFS(ctx context.Context, src *corev1.NFSVolumeSource) (Mounted, error) {
	err := v.keep(&record{Volume: v.spec.Name, Source: &corev1.VolumeSource{NFS: src}})
	if err != nil {
		return Mounted{}, v.fail("nfs", err)
	}
	mounted, err := v.nfs(ctx, v.spec.Name, src, src.ReadOnly, nil)
	if err != nil {
		return Mounted{}, v.fail("nfs", err)
	}
	return mounted, nil
}

// nfs mounts an export by mount(2), NFS 4.2 unless the options say otherwise: nothing but the
// kernel's client is needed. Versions below 4 need what mount.nfs does, and are refused.
func (v volume) nfs(ctx context.Context, name string, src *corev1.NFSVolumeSource, readonly bool, options []string) (Mounted, error) {
	dir := v.m.nfsPath(string(v.pod.UID), name)
	defer v.m.shared.Lock(dir)() // the pod may name one claim twice
	mounted, err := mounts.IsMountPoint(dir)
	if err != nil || mounted {
		return Mounted{Path: dir, Readonly: readonly}, err
	}
	server, err := addressOf(ctx, src.Server)
	if err != nil {
		return Mounted{}, err
	}
	source, flags, data, err := nfsMount(src, server, readonly, options)
	if err != nil {
		return Mounted{}, err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return Mounted{}, err
	}
	err = unix.Mount(source, dir, "nfs4", flags, data)
	switch {
	case errors.Is(err, unix.ENODEV):
		return Mounted{}, errors.New("the kernel of this node has no NFS client (file system nfs4)")
	case err != nil:
		return Mounted{}, fmt.Errorf("mount NFS export %s:%s: %w", src.Server, src.Path, err)
	}
	return Mounted{Path: dir, Readonly: readonly}, nil
}

// nfsMount is what mount(2) is told.
func nfsMount(src *corev1.NFSVolumeSource, server netip.Addr, readonly bool, options []string) (source string, flags uintptr, data string, err error) {
	if flags, data, err = nfsOptions(server, options); err != nil {
		return "", 0, "", err
	}
	if readonly {
		flags |= unix.MS_RDONLY
	}
	host := src.Server
	if server.Is6() {
		host = "[" + server.String() + "]"
	}
	return host + ":" + src.Path, flags, data, nil
}

func addressOf(ctx context.Context, server string) (netip.Addr, error) {
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", strings.Trim(server, "[]"))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find NFS server: %w", err)
	}
	return addrs[0].Unmap(), nil
}

// mountFlags are the options of any mount.
var mountFlags = map[string]uintptr{
	"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
	"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME, "sync": unix.MS_SYNCHRONOUS,
	"rw": 0, "defaults": 0, "exec": 0, "suid": 0, "dev": 0, "async": 0,
}

// nfsOptions splits options into flags and the kernel's text.
func nfsOptions(server netip.Addr, options []string) (flags uintptr, data string, err error) {
	version, rest := "", []string{}
	for _, list := range options {
		for _, option := range strings.Split(list, ",") {
			key, value, _ := strings.Cut(option, "=")
			flag, known := mountFlags[option]
			switch {
			case known:
				flags |= flag
			case key == "vers" || key == "nfsvers":
				version = value
			case key == "addr" || key == "clientaddr":
				return 0, "", fmt.Errorf("mount option %q is not for volumes", option)
			default:
				rest = append(rest, option)
			}
		}
	}
	version = cmp.Or(version, "4.2")
	if !strings.HasPrefix(version, "4") {
		return 0, "", fmt.Errorf("NFS version %q is not supported by this node, 4 and later are", version)
	}
	all := append([]string{"vers=" + version, "addr=" + server.String()}, rest...)
	return flags, strings.Join(all, ","), nil
}

func (m *Manager) nfsPath(uid, name string) string {
	return m.opts.Layout.KubeletVolume(uid, dirNFS, name)
}

// unmountNFS takes a mount away also when its server does not answer.
func (m *Manager) unmountNFS(uid, name string) error {
	dir := m.nfsPath(uid, name)
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // not mounted, or never made
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}
